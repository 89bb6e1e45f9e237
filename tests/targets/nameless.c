/* SPDX-License-Identifier: Apache-2.0
 * Maps memory through code that is in a file, but in no ELF file: nameless FILE.
 */
#include "target.h"

#include <fcntl.h>

typedef void call_fn(size_t bytes, void *(*map)(size_t));

int main(int argc, char **argv)
{
    /* push %rbp; mov %rsp,%rbp; call *%rsi; pop %rbp; ret */
    static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd6, 0x5d, 0xc3};
    int fd;
    void *page;

    need(argc == 2);
    fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0);
    need(write(fd, code, sizeof(code)) == sizeof(code));
    page = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    need(page != MAP_FAILED);
    target_ready();
    ((call_fn *)page)(PAGE, map_anonymous);
    target_done();
    return 0;
}
