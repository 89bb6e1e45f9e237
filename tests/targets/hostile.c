/* SPDX-License-Identifier: Apache-2.0
 * A target that names things to hurt the tool that reads them.  hostile DIRECTORY (it writes there):
 * it and its threads are named with terminal control, a newline and what is not UTF-8; it maps files
 * whose names hold the same, are deleted, are longer than a path may be, or lie in a memfd, and an
 * ELF file that it then cuts short.  The threads map memory and exit.
 */
#include "target.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#define LENGTH (16 * PAGE)
/* ESC sequences, a newline, C1 and bidirectional controls, and what is not UTF-8. */
#define EVIL "\033]0;x\a\033[2J\n\xc2\x9b\xe2\x80\xae\xff\xfe\xc3("

static void *map_and_exit(void *tid)
{
    *(volatile pid_t *)tid = own_tid();
    prctl(PR_SET_NAME, "\033[2J\n\xff\xfe) R 1\r");
    char *start = map_anonymous(LENGTH);
    say_mapped(start, LENGTH, own_tid(), own_tid());
    return NULL;
}

/* Executable, so that every reader of code and symbols wants the file. */
static void map_file(int file, size_t length)
{
    char page[PAGE] = "\177ELF\2\1\1";

    need(file >= 0);
    for (size_t at = 0; at < length; at += PAGE)
        need(write(file, page, PAGE) == PAGE);
    need(mmap(NULL, length, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) != MAP_FAILED);
}

static int create(const char *name)
{
    return open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
}

/* 4096 is the most that one call takes, a path can be longer: go there step by step. */
static void map_deep_file(void)
{
    char name[201] = {0};
    int home = open(".", O_RDONLY | O_DIRECTORY);

    need(home >= 0);
    memset(name, 'd', sizeof(name) - 1);
    for (int depth = 0; depth < 30; depth++)
        need(!mkdir(name, 0700) && !chdir(name));
    map_file(create("deep" EVIL), PAGE);
    need(!fchdir(home));
    close(home);
}

static void map_library_and_cut_it(void)
{
    char bytes[PAGE];
    ssize_t count;
    int from = open("/proc/self/exe", O_RDONLY);
    int to = create("cut.so");
    struct stat status;

    need(from >= 0 && to >= 0);
    while ((count = read(from, bytes, sizeof(bytes))) > 0)
        need(write(to, bytes, count) == count);
    need(!fstat(to, &status));
    need(mmap(NULL, status.st_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, to, 0) != MAP_FAILED);
    need(!ftruncate(to, 100));
}

int main(int argc, char **argv)
{
    need(argc == 2 && !chdir(argv[1]));
    need(!prctl(PR_SET_NAME, EVIL));
    map_file(create("name" EVIL), PAGE);
    map_file(create("gone" EVIL " (deleted)"), PAGE);
    need(!unlink("gone" EVIL " (deleted)"));
    map_file(memfd_create("memfd" EVIL, 0), 4 * PAGE);
    map_deep_file();
    map_library_and_cut_it();
    target_ready();
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        pid_t tid;

        need(!pthread_create(&thread, NULL, map_and_exit, (void *)&tid));
        join_and_await(thread, &tid);
    }
    target_done();
    return 0;
}
