// SPDX-License-Identifier: Apache-2.0
// std::thread started with functions, passed by pointer; a guard against taking an argument for the function.
#include "target.h"

#include <filesystem>
#include <iterator>
#include <string>
#include <thread>

namespace shop
{
__attribute__((noinline)) void refresh_prices(int)
{
}

__attribute__((noinline)) void send_mail(int)
{
}

__attribute__((noinline)) void with_text(std::string, int, void (*)(int))
{
}

struct Large {
    char bytes[100];
};

__attribute__((noinline)) void with_large(void (*)(int), Large)
{
}

struct Cart {
    void pay(int) const
    {
    }
};
} // namespace shop

__attribute__((noinline)) void spawn(void (*function)(int))
{
    new std::thread(function, 1);
}

int main()
{
    shop::Cart cart;

    target_ready();
    for (int i = 0; i < 4; i++) {
        new std::thread(shop::refresh_prices, 1);
        spawn(i % 2 ? shop::send_mail : shop::refresh_prices);
        new std::thread(shop::with_text, "text", 3, shop::send_mail);
        new std::thread(shop::with_large, shop::send_mail, shop::Large{});
        new std::thread(&shop::Cart::pay, &cart, 1);
        new std::thread([] {});
    }
    while (std::distance(std::filesystem::directory_iterator("/proc/self/task"), {}) > 1)
        pause_ms(1);
    target_done();
}
