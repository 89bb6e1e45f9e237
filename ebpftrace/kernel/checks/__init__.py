"""Can this machine trace?  One check each, looking at the thing itself."""
