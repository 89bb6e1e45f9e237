// SPDX-License-Identifier: Apache-2.0
// mmap under C++ templates, a lambda in std::function, and std::thread; sites as in stacks_chain.c.
//   7 template method   8 lambda through std::function   9 std::thread
#include <functional>
#include <sys/mman.h>
#include <thread>

static volatile int sink;

namespace shop
{
template <typename Item> struct Pool {
    __attribute__((noinline)) void grow(int site)
    {
        size_t length = (size_t)(0x1230 + site) * 4096;
        void *at = mmap(nullptr, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(at, length);
        sink = sink + (int)sizeof(Item);
    }
};

__attribute__((noinline)) void with_lambda()
{
    std::function<void(int)> call = [](int site) {
        Pool<double>().grow(site);
        sink = sink + 1;
    };
    call(8);
    sink = sink + 1;
}

__attribute__((noinline)) void worker(int site)
{
    Pool<char>().grow(site);
    sink = sink + 1;
}
} // namespace shop

int main()
{
    shop::Pool<int>().grow(7);
    shop::with_lambda();
    std::thread thread(shop::worker, 9);
    thread.join();
    return 0;
}
