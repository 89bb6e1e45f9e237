// SPDX-License-Identifier: Apache-2.0
// mmap called through code made at run time, as a JIT does; sites as in stacks_chain.c.
//   20 through code that keeps a frame pointer   21 through code that does not
//   22 through code of a page that is new, with a frame too large to search, then as 20
//   23 through code that only aligns the stack
// The code is listed in /tmp/perf-PID.map, PID as this process sees it, until it ends; for ever if argv[1] is
// "keep-map".  With "memfd" the code is in a file in memory that is mapped twice, with "zero" in shared
// memory; with any other argv[1] it is never listed.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile int sink;

static __attribute__((noinline)) void leaf(long site)
{
    size_t length = (size_t)(0x1230 + site) * 4096;
    void *at = mmap(NULL, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(at, length);
    sink++;
}

static __attribute__((noinline)) void outer(void (*code)(long, void (*)(long)), long site)
{
    code(site, leaf);
    sink++;
}

static __attribute__((noinline)) void newest(void (*code)(long, void (*)(long), void *), void *then)
{
    code(22, leaf, then);
    sink++;
}

// A page of its own with this code.
static void *made(const uint8_t *code, size_t size)
{
    // Not beside the others: the kernel would join the mappings.
    void *page = mmap((void *)0x500000000000, 4096, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (page == MAP_FAILED)
        abort();
    memcpy(page, code, size);
    mprotect(page, 4096, PROT_READ | PROT_EXEC);
    return page;
}

// Where code is written; *executed gets the address at which it runs.
static uint8_t *place(const char *kind, uint8_t **executed)
{
    int both = PROT_READ | PROT_WRITE | PROT_EXEC;
    uint8_t *written;
    int file;

    if (strcmp(kind, "memfd")) {
        int flags = strcmp(kind, "zero") ? MAP_PRIVATE : MAP_SHARED;
        return *executed = mmap(NULL, 4096, both, flags | MAP_ANONYMOUS, -1, 0);
    }
    file = memfd_create("doublemapper", 0);
    if (file < 0 || ftruncate(file, 8192))
        abort();
    written = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 4096);
    *executed = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, file, 4096);
    close(file);
    return written;
}

int main(int argc, char **argv)
{
    // push rbp; mov rbp,rsp; call rsi; pop rbp; ret
    static const uint8_t with[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd6, 0x5d, 0xc3};
    // xor ebp,ebp would end the walk by the ABI's rule; keep data there instead.
    // push rbp; xor eax,eax; push rax (8 times); mov ebp,0x1234; call rsi; add rsp,0x40; pop rbp; ret
    static const uint8_t without[] = {0x55, 0x31, 0xc0, 0x50, 0x50, 0x50, 0x50, 0x50,
                                      0x50, 0x50, 0x50, 0xbd, 0x34, 0x12, 0,    0,
                                      0xff, 0xd6, 0x48, 0x83, 0xc4, 0x40, 0x5d, 0xc3};
    // sub rsp,8; call rsi; add rsp,8; ret
    static const uint8_t trampoline[] = {0x48, 0x83, 0xec, 0x08, 0xff, 0xd6,
                                         0x48, 0x83, 0xc4, 0x08, 0xc3};
    // push rbp; mov rbp,rsp; sub rsp,0x1000; call rdx; leave; ret
    static const uint8_t new[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x81, 0xec, 0,
                                  0x10, 0,    0,    0xff, 0xd2, 0xc9, 0xc3};
    char path[64];
    const char *kind = argc > 1 ? argv[1] : "";
    int keeps_map = !strcmp(kind, "keep-map");
    int lists = argc == 1 || !strcmp(kind, "memfd") || !strcmp(kind, "zero");
    uint8_t *code;
    uint8_t *written = place(kind, &code);

    if (written == MAP_FAILED || code == MAP_FAILED)
        abort();
    memcpy(written, with, sizeof(with));
    memcpy(written + 64, without, sizeof(without));
    memcpy(written + 128, trampoline, sizeof(trampoline));
    if (lists || keeps_map) {
        snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)getpid());
        FILE *map = fopen(path, "w");
        if (!map)
            abort();
        fprintf(map, "%lx %x py::with_pointer:/srv/app.py\n", (unsigned long)code,
                (unsigned)sizeof(with));
        fprintf(map, "%lx %x LazyCompile:~without app.js:1\n", (unsigned long)code + 64,
                (unsigned)sizeof(without));
        fprintf(map, "%lx %x trampoline\n", (unsigned long)code + 128,
                (unsigned)sizeof(trampoline));
        fclose(map);
    }
    outer((void (*)(long, void (*)(long)))code, 20);
    outer((void (*)(long, void (*)(long)))(code + 64), 21);
    outer((void (*)(long, void (*)(long)))(code + 128), 23);
    newest((void (*)(long, void (*)(long), void *))made(new, sizeof(new)), code);
    if (lists)
        unlink(path);
    return 0;
}
