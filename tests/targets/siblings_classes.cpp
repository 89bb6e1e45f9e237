// SPDX-License-Identifier: Apache-2.0
// As siblings.c, in C++: the two sites are methods of two instances of a template, called through a virtual
// table, below frames that an exception would clean up: siblings_classes COUNT.
#include "target.h"

static void *end(void *)
{
    return nullptr;
}

namespace shop
{
struct Attributes {
    pthread_attr_t attributes;

    Attributes()
    {
        need(!pthread_attr_init(&attributes));
    }
    __attribute__((noinline)) ~Attributes()
    {
        pthread_attr_destroy(&attributes);
    }
};

struct Starter {
    virtual ~Starter() = default;
    virtual void start() = 0;
};

pthread_t thread; /* no stack keeps it */

__attribute__((noipa)) void create(const pthread_attr_t &attributes)
{
    if (pthread_create(&thread, &attributes, end, nullptr))
        throw 1;
    thread = 0;
}

template <int number> struct Numbered : Starter {
    __attribute__((noipa)) void start() override
    {
        Attributes own;

        create(own.attributes);
        __asm__ volatile("" ::"i"(number) : "memory");
    }
};

__attribute__((noipa)) void start_each(Starter *const *starters, int count)
{
    for (int i = 0; i < 2 * count; i++)
        starters[i % 2]->start();
}
} // namespace shop

int main(int argc, char **argv)
{
    shop::Numbered<1> left;
    shop::Numbered<2> right;
    shop::Starter *const starters[] = {&left, &right};

    target_ready();
    shop::start_each(starters, argc > 1 ? atoi(argv[1]) : 10);
    target_done();
}
