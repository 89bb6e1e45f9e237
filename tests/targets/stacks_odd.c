// SPDX-License-Identifier: Apache-2.0
/*
 * Stacks that compilers seldom make: assembly without unwind tables, signal handlers on a stack of their own
 * and after a jump to nowhere, coroutines.  Each way ends in leaf(), which maps a site's number of pages.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#define APART __attribute__((noinline, noclone))
#define FIRST_PAGES 0x1230

enum site {
    SITE_SMALL = 40, /* assembly with a small frame */
    SITE_LARGE,      /* assembly with a frame of 2 KiB, in which older return addresses lie */
    SITE_POINTER,    /* assembly that jumps on through a table, with a frame pointer */
    SITE_TABLE,      /* the same without */
    SITE_OTHER_STACK,
    SITE_NOWHERE, /* the handler of a call through NULL */
    SITE_CONTEXT, /* makecontext */
    SITE_ZERO,    /* a coroutine that returns to address 0 */
    SITE_FINISH,  /* a coroutine that returns to code that ends the program */
};

static volatile int sink;

APART static void leaf(int site)
{
    void *map = mmap(0, (FIRST_PAGES + site) * 4096UL, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (map == MAP_FAILED)
        abort();
    sink++;
}

APART static void callback(int site)
{
    leaf(site);
    sink++;
}

/* Each calls back with its argument, and has no unwind table. */
void asm_small(int site, void (*call)(int));
void asm_large(int site, void (*call)(int));
void asm_pointer(int site, void (*call)(int));
void asm_table(int site, void (*call)(int));
/* Runs a function on another stack, at whose top lies what it returns to. */
void asm_switch(void *top, void (*run)(void));
extern char asm_finish[];

__asm__(".text\n"
        ".type asm_small,@function\n"
        "asm_small: push %rbx\n"
        "  sub $32,%rsp\n"
        "  call *%rsi\n"
        "  add $32,%rsp\n"
        "  pop %rbx\n"
        "  ret\n"
        ".size asm_small,.-asm_small\n"
        ".type asm_large,@function\n"
        "asm_large: push %rbx\n"
        "  sub $2048,%rsp\n"
        "  call *%rsi\n"
        "  test %eax,%eax\n"
        "  js 1f\n"
        "  add $2048,%rsp\n"
        "  pop %rbx\n"
        "  ret\n"
        "1: lea 2048(%rsp),%rsp\n"
        "  pop %rbx\n"
        "  jmp sink_in\n"
        ".size asm_large,.-asm_large\n"
        ".type asm_pointer,@function\n"
        "asm_pointer: push %rbp\n"
        "  mov %rsp,%rbp\n"
        "  sub $48,%rsp\n"
        "  movq $0,-8(%rbp)\n"
        "  call *%rsi\n"
        "  lea 2f(%rip),%rax\n"
        "  add -8(%rbp),%rax\n"
        "  jmp *%rax\n"
        "2: leave\n"
        "  ret\n"
        ".size asm_pointer,.-asm_pointer\n"
        ".type asm_table,@function\n"
        "asm_table: push %rbx\n"
        "  sub $1024,%rsp\n"
        "  call *%rsi\n"
        "  lea 3f(%rip),%rax\n"
        "  jmp *%rax\n"
        "3: add $1024,%rsp\n"
        "  pop %rbx\n"
        "  ret\n"
        ".size asm_table,.-asm_table\n"
        ".type asm_switch,@function\n"
        "asm_switch: push %rbp\n"
        "  mov %rsp,asm_saved(%rip)\n"
        "  mov %rdi,%rsp\n"
        "  xor %ebp,%ebp\n"
        "  jmp *%rsi\n"
        ".size asm_switch,.-asm_switch\n"
        "asm_finish: xor %edi,%edi\n"
        "  call _exit@PLT\n"
        "  hlt\n"
        ".type asm_back,@function\n"
        "asm_back: mov asm_saved(%rip),%rsp\n"
        "  pop %rbp\n"
        "  ret\n"
        ".size asm_back,.-asm_back\n"
        ".data\n"
        "asm_saved: .quad 0\n"
        ".text\n");
void asm_back(void) __attribute__((noreturn));

void sink_in(void)
{
    sink++;
}

APART static int other_deep(int depth)
{
    volatile char buffer[64];
    int rest;

    buffer[depth & 63] = depth;
    rest = depth ? other_deep(depth - 1) : sink;
    sink++;
    return rest + buffer[1];
}

APART static void outer(void (*call)(int, void (*)(int)), int site)
{
    call(site, callback);
    sink++;
}

static volatile int handled;
static sigjmp_buf after_nowhere;

static void on_signal(int number)
{
    handled = 1;
    leaf(number == SIGSEGV ? SITE_NOWHERE : SITE_OTHER_STACK);
    if (number == SIGSEGV)
        siglongjmp(after_nowhere, 1);
}

APART static void raiser(void)
{
    raise(SIGUSR1);
    sink++;
}

static void (*volatile nowhere)(void);

APART static void faulter(void)
{
    nowhere();
    sink++;
}

static ucontext_t here, context;

APART static void in_context(void)
{
    leaf(SITE_CONTEXT);
    sink++;
}

static void coroutine_zero(void)
{
    leaf(SITE_ZERO);
    asm_back();
}

static void coroutine_finish(void)
{
    leaf(SITE_FINISH);
    asm_back();
}

static char stacks[3][1 << 16] __attribute__((aligned(16)));

int main(void)
{
    stack_t other = {.ss_sp = stacks[0], .ss_size = sizeof(stacks[0])};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    uintptr_t *top = (uintptr_t *)(stacks[1] + sizeof(stacks[1])) - 3;

    sink += other_deep(60);
    outer(asm_small, SITE_SMALL);
    sink += other_deep(60);
    outer(asm_large, SITE_LARGE);
    outer(asm_pointer, SITE_POINTER);
    sink += other_deep(60);
    outer(asm_table, SITE_TABLE);
    sigaltstack(&other, 0);
    sigaction(SIGUSR1, &action, 0);
    action.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &action, 0);
    raiser();
    if (!sigsetjmp(after_nowhere, 1))
        faulter();
    getcontext(&context);
    context.uc_stack.ss_sp = stacks[2];
    context.uc_stack.ss_size = sizeof(stacks[2]);
    context.uc_link = &here;
    makecontext(&context, in_context, 0);
    swapcontext(&here, &context);
    *top = 0;
    asm_switch(top, coroutine_zero);
    *top = (uintptr_t)asm_finish;
    asm_switch(top, coroutine_finish);
    return handled ? 0 : 1;
}
