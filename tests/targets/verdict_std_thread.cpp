// SPDX-License-Identifier: Apache-2.0
// std::thread and its kin, whose objects are lost, detached, joined or waited for:
// verdict_std_thread lost|detached|joined|async COUNT.
#include "target.h"

#include <atomic>
#include <cstring>
#include <future>
#include <thread>

static std::atomic<pid_t> last;

namespace shop
{
__attribute__((noinline)) void refresh_prices(int)
{
    last = own_tid();
}

__attribute__((noinline)) void start(const char *kind)
{
    if (!strcmp(kind, "async")) {
        std::async(std::launch::async, refresh_prices, 1).get();
        return;
    }
    auto *thread = new std::thread(refresh_prices, 1);
    if (!strcmp(kind, "detached"))
        thread->detach();
    if (!strcmp(kind, "joined"))
        thread->join();
    if (strcmp(kind, "lost"))
        delete thread;
}
} // namespace shop

int main(int argc, char **argv)
{
    need(argc > 2);
    target_ready();
    for (int i = 0; i < atoi(argv[2]); i++) {
        last = 0;
        shop::start(argv[1]);
        while (!last)
            pause_ms(1);
        await_thread_gone(last);
    }
    target_done();
}
