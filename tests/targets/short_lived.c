/* SPDX-License-Identifier: Apache-2.0
 * Works and ends within a few milliseconds, sooner than anybody can read its /proc: starts threads that
 * nobody joins; or, given a plugin, loads, runs and unloads it at once, each time.
 */
#include "target.h"
#include <dlfcn.h>

static __attribute__((noinline)) void start_thread_here(void)
{
    pthread_t thread;
    pid_t *tid = calloc(1, sizeof(*tid));

    need(tid && !pthread_create(&thread, NULL, tell_tid_and_end, tid));
}

static void called_back(int unused)
{
    (void)unused;
    map_anonymous(PAGE);
}

static __attribute__((noinline)) void load_run_unload(const char *path)
{
    void *plugin = dlopen(path, RTLD_NOW);

    need(plugin);
    ((void (*)(void (*)(int)))dlsym(plugin, "plugin_entry"))(called_back);
    need(!dlclose(plugin));
}

int main(int count, char **arguments)
{
    need(count >= 2);
    for (int i = 0; i < atoi(arguments[1]); i++) {
        if (count > 2 && strstr(arguments[2], ".so")) /* else it is the name of a script */
            load_run_unload(arguments[2]);
        else
            start_thread_here();
    }
    return 0;
}
