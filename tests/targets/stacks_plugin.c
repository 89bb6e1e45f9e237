// SPDX-License-Identifier: Apache-2.0
// A plugin for stacks_chain: calls back into the program from a library loaded late.
static volatile int sink;

static __attribute__((noinline)) void plugin_inner(void (*callback)(int))
{
    callback(4);
    sink++;
}

void plugin_entry(void (*callback)(int))
{
    plugin_inner(callback);
    sink++;
}
