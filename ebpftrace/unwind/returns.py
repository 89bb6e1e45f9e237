# SPDX-License-Identifier: Apache-2.0
"""How code without an unwind table will return: read from its own instructions.

What follows a call, on every way to a ``ret``, takes down the frame that the call was made in: so many
bytes, and which registers are restored from where.  No table, symbol or beginning of the function is needed,
and compilers of every language end their functions like that; code that JIT compilers made too, if its bytes
can be read.  Ways that end elsewhere (a jump table, a tail call through a register) are left out.  What a
called function leaves of the registers is what the x86-64 psABI says.

The instructions are the target's: at most so many are looked at, and nothing of them is trusted but
that they are what the CPU will run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

from iced_x86 import (
    Decoder,
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

from ebpftrace.unwind.code_bytes import Known

if TYPE_CHECKING:
    from iced_x86._iced_x86_py import Register as RegisterNumber
else:
    RegisterNumber = int

ReadCode = Callable[[int, int], bytes]
"""(address, count) -> at most count bytes of code, fewer where what can be read ends."""

FindOut = Callable[[dict[int, Known[bool]], int, Callable[[], bool]], bool]

MAX_INSTRUCTIONS = 2000
"""Looked at for one address."""
_DEEPEST = 3
"""Calls within calls that are looked at to see whether they come back."""
_LONGEST_UNDOING = 64
"""Instructions between a call and the next branch."""
_CHUNK = 256
_LONGEST_INSTRUCTION = 15
_WORD = 8
_LARGEST_STORE = 512
"""Bytes; where an instruction does not show how many it writes (fxsave)."""

_NAMES = {
    Register.RSP: "sp", Register.RBP: "bp", Register.RBX: "bx",
    Register.R12: "r12", Register.R13: "r13", Register.R14: "r14", Register.R15: "r15",
}  # fmt: skip
"""Registers that a called function leaves as they were, by their names in ``copies.REGISTER_NAMES``."""
_WRITES = frozenset({OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE})
_RAX = frozenset({Register.RAX, Register.EAX, Register.AL})
_IMMEDIATES = frozenset({OpKind.IMMEDIATE8, OpKind.IMMEDIATE32, OpKind.IMMEDIATE32TO64})
_EXITS = frozenset({60, 231})
"""exit and exit_group (arch/x86/entry/syscalls/syscall_64.tbl)."""
_TRAPS = frozenset({Mnemonic.HLT, Mnemonic.UD2, Mnemonic.INT3})


class Value(NamedTuple):
    """What a register holds: another as it is now, plus an offset; or the word of memory there."""

    register: str
    offset: int
    loaded: bool = False

    def plus(self, offset: int) -> Optional[Value]:
        """The sum; of what was loaded from memory nothing more is known."""
        return None if self.loaded else self._replace(offset=self.offset + offset)

    def load(self, offset: int) -> Optional[Value]:
        """The word of memory that lies so far from it."""
        return None if self.loaded else Value(self.register, self.offset + offset, True)


_TAKEN_DOWN = Value("bp", _WORD)
"""The stack pointer after mov %rbp,%rsp; pop %rbp."""


class Return(NamedTuple):
    """How a frame is left."""

    slot: Value
    """Where the return address lies."""
    sp: Optional[Value]
    """The caller's stack pointer, mostly just above that.  V8's code drops arguments by itself, so many that
    nobody knows: None."""
    registers: tuple[tuple[str, Optional[Value]], ...]
    """What the caller finds in each of its registers but the stack pointer; None: not known."""


class WayBack(NamedTuple):
    """What was found out about the code at one address."""

    rules: tuple[Return, ...] = ()
    """More than one: some way was followed past a call that does not come back, into another function."""
    never: bool = False
    """Every way ends in an instruction that traps, or in the thread's exit: it returns to nobody.

    Not of what only traps, such as the padding between functions.
    """
    by_pointer: bool = False
    """It finds its variables below rbp: that is its frame pointer."""


_State = dict[RegisterNumber, Optional[Value]]


@dataclass
class _Path:
    """Registers, and what was pushed or stored on the stack, at one instruction."""

    at: int
    registers: _State
    pushed: dict[tuple[str, int], Optional[Value]] = field(default_factory=dict)
    """By the place."""
    on_top: Optional[Value] = None
    """What was pushed last, where nobody knows to which place."""
    number: Optional[int] = None
    """What rax holds, where a system call is prepared."""

    def copy(self, at: int) -> _Path:
        return _Path(at, dict(self.registers), dict(self.pushed), self.on_top, self.number)

    @property
    def sp(self) -> Optional[Value]:
        return self.registers[Register.RSP]

    def move_stack(self, offset: int) -> None:
        sp = self.sp
        self.on_top = None
        self.registers[Register.RSP] = None if sp is None else sp.plus(offset)

    def exits(self, instruction: Instruction) -> bool:
        """A system call that ends the thread."""
        return instruction.mnemonic == Mnemonic.SYSCALL and self.number in _EXITS

    def top(self) -> Optional[Value]:
        """The word that the stack pointer points to."""
        sp = self.sp
        if sp is None:
            return self.on_top
        place = sp.register, sp.offset
        return self.pushed[place] if place in self.pushed else sp.load(0)


class Instructions:
    """Reads code that may be the target's; one for each set of loaded files."""

    def __init__(self, code: ReadCode, find_out: FindOut) -> None:
        """``find_out`` as in ``code_bytes.CodeBytes``."""
        self._code = code
        self._find_out = find_out
        self._info = InstructionInfoFactory()
        self._returning: dict[int, Known[bool]] = {}
        self._entered: set[int] = set()
        """Called functions that are being looked at."""

    def way_back(self, address: int) -> WayBack:
        """How the code at ``address`` returns."""
        rules: set[Return] = set()
        left: set[Return] = set()
        never = True
        by_pointer = False
        is_padding = True
        for path, instruction in self._follow(address, set(_NAMES)):
            if instruction is None:
                never = False
                continue
            is_padding = is_padding and instruction.mnemonic in _TRAPS
            bp = path.registers.get(Register.RBP)
            by_pointer = by_pointer or (bp == Value("bp", 0) and _is_below_rbp(instruction))
            if _is_return(path, instruction):
                rule = _rule(path, instruction)
                if rule is None:
                    return WayBack(by_pointer=by_pointer)
                rules.add(rule)
            elif instruction.flow_control == FlowControl.INDIRECT_BRANCH:
                never = False
            elif instruction.flow_control == FlowControl.UNCONDITIONAL_BRANCH and _is_taken_down(path):
                left.update(filter(None, [_rule(path, instruction)]))
        # A loop for ever may be left by an exception alone, whose handler does not return.
        rules = rules or left
        by_slot: dict[Value, list[Return]] = {}
        for rule in rules:
            by_slot.setdefault(rule.slot, []).append(rule)
        agreed = tuple(_agreed(similar) for similar in by_slot.values())
        return WayBack(agreed, never and not rules and not is_padding, by_pointer)

    def entered(self, start: int, address: int, depth: int) -> Optional[Return]:
        """How a function that begins at ``start`` is left, by how it was entered.

        None unless it comes to ``address`` with its return address ``depth`` bytes up the stack, and where
        that is not known, such as after an alloca.
        """
        for path, instruction in self._follow(start, set(_NAMES)):
            if instruction is None or path.sp != Value("sp", -depth):
                continue
            # A call that does not come back is not followed any further.
            if path.at == address or (instruction.next_ip == address and _is_call(instruction)):
                return Return(Value("sp", depth), Value("sp", depth + _WORD), tuple(_saved(path, depth)))
        return None

    def sp_after_call(self, address: int) -> Optional[Value]:
        """Where the stack pointer is when the code at ``address`` has undone what the call before it needed.

        Such as arguments, or bytes that align the stack: code takes them off before it does anything else, at
        the latest before it branches, unless it takes the frame itself off.  None if that is not known.
        """
        path = _Path(address, {register: Value(name, 0) for register, name in _NAMES.items()})
        for number, instruction in enumerate(self._decode(address)):
            before = path.sp
            if instruction.flow_control != FlowControl.NEXT:
                return before
            if instruction.is_invalid or number >= _LONGEST_UNDOING:
                return None
            self._step(path, instruction)
            if path.sp is None:
                return None
            if before is not None and path.sp.register == before.register and path.sp.offset < before.offset:
                return before
        return None

    def calls_last_by_register(self, start: int) -> bool:
        """Whether a function that begins at ``start`` may jump to one that nobody can tell, as its last call.

        That one has the same caller, and finds the stack as it was: a jump through a table within one
        function mostly has a frame by then.
        """
        return any(
            instruction is not None
            and instruction.flow_control == FlowControl.INDIRECT_BRANCH
            and path.sp == Value("sp", 0)
            for path, instruction in self._follow(start, set(_NAMES))
        )

    def _returns(self, function: int, depth: int) -> bool:
        """Whether a called function may come back; exit() does not, nor what calls it last."""
        if depth > _DEEPEST or function in self._entered:
            return True

        def comes_back() -> bool:
            return any(
                instruction is None
                or instruction.flow_control in (FlowControl.RETURN, FlowControl.INDIRECT_BRANCH)
                for _, instruction in self._follow(function, {Register.RSP}, depth)
            )

        self._entered.add(function)
        try:
            return self._find_out(self._returning, function, comes_back)
        finally:
            self._entered.remove(function)

    def _follow(
        self, start: int, kept: set[RegisterNumber], depth: int = 0
    ) -> Iterator[tuple[_Path, Optional[Instruction]]]:
        """Each instruction that can be reached, once, with the registers before it.

        None for an instruction: the way goes on where nothing can be read, or is too long.
        """
        waiting = [_Path(start, {register: Value(_NAMES[register], 0) for register in kept})]
        seen: set[int] = set()
        while waiting:
            path = waiting.pop()
            for instruction in self._decode(path.at):
                if path.at in seen:
                    break
                if len(seen) >= MAX_INSTRUCTIONS:
                    yield path, None
                    return
                if instruction.is_invalid:
                    # Such as what follows V8's last exit to the interpreter: the other ways go on.
                    yield path, None
                    break
                seen.add(path.at)
                yield path, instruction
                flow = instruction.flow_control
                if flow in (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH):
                    waiting.append(path.copy(instruction.near_branch_target))
                if flow in _ENDS or instruction.mnemonic in _TRAPS or path.exits(instruction):
                    break
                if instruction.is_call_near and not self._returns(instruction.near_branch_target, depth + 1):
                    break
                self._step(path, instruction)
                path.at = instruction.next_ip
            else:
                yield path, None

    def _decode(self, address: int) -> Iterator[Instruction]:
        while True:
            chunk = self._code(address, _CHUNK)
            if not chunk:
                return
            decoder = Decoder(64, chunk, ip=address)
            # Near the end of the chunk an instruction may be cut.
            most = len(chunk) - _LONGEST_INSTRUCTION if len(chunk) == _CHUNK else len(chunk)
            while decoder.position < most:
                yield decoder.decode()
            if len(chunk) < _CHUNK:
                return
            address += decoder.position

    def _step(self, path: _Path, instruction: Instruction) -> None:
        registers = path.registers
        mnemonic = instruction.mnemonic
        if instruction.op0_register in _RAX:
            is_number = mnemonic == Mnemonic.MOV and instruction.op1_kind in _IMMEDIATES
            path.number = instruction.immediate(1) if is_number else None
        if _is_call(instruction):
            for register in [one for one in registers if one not in _NAMES]:
                registers[register] = None
            path.number = None
            return
        if mnemonic == Mnemonic.PUSH:
            path.move_stack(instruction.stack_pointer_increment)
            if path.sp is not None:
                path.pushed[path.sp.register, path.sp.offset] = _pushed(path, instruction)
            else:
                path.on_top = _pushed(path, instruction)
            return
        if mnemonic == Mnemonic.POP and instruction.op0_kind == OpKind.REGISTER:
            value = path.top()
            path.move_stack(instruction.stack_pointer_increment)
            self._write(registers, instruction.op0_register, value)
            return
        if mnemonic == Mnemonic.LEAVE:
            registers[Register.RSP] = registers.get(Register.RBP)
            path.on_top = None
            value = path.top()
            path.move_stack(_WORD)
            self._write(registers, Register.RBP, value)
            return
        if instruction.op0_kind == OpKind.MEMORY:
            self._store(path, instruction)
        if instruction.op0_kind == OpKind.REGISTER and mnemonic in _MOVES:
            if instruction.op0_register == Register.RSP:
                path.on_top = None
            self._write(registers, instruction.op0_register, _MOVES[mnemonic](path, instruction))
            return
        for used in self._info.info(instruction).used_registers():
            if used.access in _WRITES:
                full = RegisterExt.full_register(used.register)
                if full == Register.RSP and instruction.is_stack_instruction:
                    path.move_stack(instruction.stack_pointer_increment)
                elif full in registers:
                    registers[full] = None
                    path.on_top = None if full == Register.RSP else path.on_top

    def _store(self, path: _Path, instruction: Instruction) -> None:
        """Note what is in the words that an instruction writes to: HotSpot saves all registers by mov."""
        based = _based(path, instruction)
        place = None if based is None else based[0].plus(based[1])
        written = [used for used in self._info.info(instruction).used_memory() if used.access in _WRITES]
        if place is None or not written:
            return
        size = MemorySizeExt.size(written[0].memory_size) or _LARGEST_STORE
        is_word = instruction.mnemonic == Mnemonic.MOV and size == _WORD and not place.offset % _WORD
        for offset in range(place.offset - place.offset % _WORD, place.offset + size, _WORD):
            path.pushed[place.register, offset] = None
        if is_word and instruction.op1_kind == OpKind.REGISTER:
            path.pushed[place.register, place.offset] = path.registers.get(instruction.op1_register)

    @staticmethod
    def _write(registers: _State, register: RegisterNumber, value: Optional[Value]) -> None:
        full = RegisterExt.full_register(register)
        registers[full] = value if full == register else None


_ENDS = frozenset(
    {
        FlowControl.RETURN, FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH,
        FlowControl.EXCEPTION, FlowControl.INTERRUPT,
    }
)  # fmt: skip


def _based(path: _Path, instruction: Instruction) -> Optional[tuple[Value, int]]:
    """Base and displacement of a memory operand, where that is all there is and the base is known."""
    base = path.registers.get(instruction.memory_base)
    if (
        base is None
        or instruction.memory_index != Register.NONE
        or instruction.segment_prefix != Register.NONE
    ):
        return None
    return base, _signed(instruction.memory_displacement)


def _moved(path: _Path, instruction: Instruction) -> Optional[Value]:
    if instruction.op1_kind == OpKind.REGISTER:
        return path.registers.get(instruction.op1_register)
    based = _based(path, instruction) if instruction.op1_kind == OpKind.MEMORY else None
    if based is None:
        return None
    address = based[0].plus(based[1])
    if address is not None and (address.register, address.offset) in path.pushed:
        return path.pushed[address.register, address.offset]
    return based[0].load(based[1])


def _pushed(path: _Path, instruction: Instruction) -> Optional[Value]:
    if instruction.op0_kind == OpKind.REGISTER:
        return path.registers.get(instruction.op0_register)
    based = _based(path, instruction) if instruction.op0_kind == OpKind.MEMORY else None
    return None if based is None else based[0].load(based[1])


def _effective(path: _Path, instruction: Instruction) -> Optional[Value]:
    based = _based(path, instruction)
    return None if based is None else based[0].plus(based[1])


def _shifted(path: _Path, instruction: Instruction) -> Optional[Value]:
    value = path.registers.get(instruction.op0_register)
    if value is None or instruction.op1_kind in (OpKind.REGISTER, OpKind.MEMORY):
        return None
    by = _signed(instruction.immediate(1))
    return value.plus(by if instruction.mnemonic == Mnemonic.ADD else -by)


_MOVES = {
    Mnemonic.MOV: _moved,
    Mnemonic.LEA: _effective,
    Mnemonic.ADD: _shifted,
    Mnemonic.SUB: _shifted,
}


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _is_below_rbp(instruction: Instruction) -> bool:
    return (
        instruction.memory_base == Register.RBP
        and instruction.memory_index == Register.NONE
        and _signed(instruction.memory_displacement) < 0
    )


def _is_return(path: _Path, instruction: Instruction) -> bool:
    """Also a tail call, which leaves the stack as ``ret`` finds it.

    Through the procedure linkage table, or by a frame that was taken down before: another jump through a
    register may go on in the same function.
    """
    if instruction.mnemonic == Mnemonic.RET:
        return True
    if instruction.flow_control != FlowControl.INDIRECT_BRANCH:
        return False
    is_plt = instruction.op0_kind == OpKind.MEMORY and instruction.is_ip_rel_memory_operand
    return is_plt or path.sp == _TAKEN_DOWN


def _is_taken_down(path: _Path) -> bool:
    """rbp has been restored from below the stack pointer: what it points to now is the return address."""
    sp = path.sp
    if sp is None or sp.loaded or sp.register != "sp" or sp.offset < _WORD:
        return False
    return path.registers.get(Register.RBP) == Value("sp", sp.offset - _WORD, True)


def _is_call(instruction: Instruction) -> bool:
    return instruction.flow_control in (FlowControl.CALL, FlowControl.INDIRECT_CALL)


def _rule(path: _Path, instruction: Instruction) -> Optional[Return]:
    address, sp = path.top(), path.sp
    if address is None and sp is not None and sp.plus(_WORD) == _TAKEN_DOWN:
        # V8's jump to an address that it pushed.
        return _rule_at(path, _TAKEN_DOWN.load(0), _TAKEN_DOWN.plus(_WORD))
    if sp is not None and sp.loaded:
        return None
    is_counted = instruction.mnemonic == Mnemonic.RET and instruction.op_count
    popped = _WORD + (instruction.immediate(0) if is_counted else 0)
    return _rule_at(path, address, None if sp is None else sp.plus(popped))


def _rule_at(path: _Path, address: Optional[Value], sp: Optional[Value]) -> Optional[Return]:
    if address is None or not address.loaded:
        return None
    saved = tuple((name, path.registers.get(register)) for register, name in _NAMES.items() if name != "sp")
    return Return(address._replace(loaded=False), sp, saved)


def _saved(path: _Path, depth: int) -> Iterator[tuple[str, Optional[Value]]]:
    """Where the registers of a function's caller are by now, if they were pushed or are untouched."""
    pushed = {value: offset for (base, offset), value in path.pushed.items() if base == "sp"}
    for register, name in _NAMES.items():
        untouched = Value(name, 0)
        if name == "sp":
            continue
        if untouched in pushed:
            yield name, Value("sp", pushed[untouched] + depth, True)
        else:
            yield name, untouched if path.registers[register] == untouched else None


def _agreed(rules: Sequence[Return]) -> Return:
    """Of rules for one slot what they have in common."""
    first, *others = rules
    registers = tuple(
        (name, value if all(dict(other.registers)[name] == value for other in others) else None)
        for name, value in first.registers
    )
    sp = first.sp if all(other.sp == first.sp for other in others) else None
    return first._replace(sp=sp, registers=registers)
