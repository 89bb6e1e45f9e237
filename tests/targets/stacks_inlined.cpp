// SPDX-License-Identifier: Apache-2.0
// Functions inlined into one another from inside of namespaces, classes and lambdas; the mmap of site 0
// (stacks_chain.c) is in the innermost.
#include <memory>
#include <string>
#include <sys/mman.h>
#include <vector>

#define INLINE inline __attribute__((always_inline))

static volatile int sink;

namespace app
{
namespace
{
INLINE void *map_now(size_t length)
{
    return mmap(nullptr, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
} // namespace

template <typename Item> class Pool
{
    std::vector<std::unique_ptr<Item>> items;

  public:
    INLINE void grow(int count)
    {
        for (int at = 0; at < count; at++)
            items.push_back(std::make_unique<Item>());
        void *got = map_now(0x1230 * 4096UL);
        sink = sink + (got != nullptr);
        munmap(got, 0x1230 * 4096UL);
    }
};

struct Job {
    std::string name = "a name that is too long to be kept in place";
    struct Step {
        static INLINE void run(Pool<Job> &pool)
        {
            auto twice = [&pool](int count)
                             __attribute__((always_inline)) { pool.grow(2 * count); };
            twice(1);
        }
    };
};

__attribute__((noinline)) void tick()
{
    Pool<Job> pool;
    Job::Step::run(pool);
    sink = sink + 1;
}
} // namespace app

int main()
{
    app::tick();
    sink = sink + 1;
    return 0;
}
