#include <stdlib.h>

#include "suite.h"

static struct entry { const char *function, *what; int alone; void (*run)(u32); } entries[512];
static int count, failed;

void suite_add(const char *function, const char *what, int alone, void (*run)(u32)) {
    if (count == 512) abort();
    entries[count++] = (struct entry){function, what, alone, run};
}

void suite_check(u64 got, u64 want, const char *text, const char *file, int line) {
    if (got == want) return;
    failed = 1;
    printf("     %s:%d: %s is %llu, want %llu\n", file, line, text, (unsigned long long)got, (unsigned long long)want);
}

u32 open_at(u32 dir, const char *path, u32 oflags, u64 rights, u32 fdflags) {
    u32 fd = -1;
    u32 e = w_path_open(dir, 0, path, strlen(path), oflags, rights, 0, fdflags, &fd);
    if (e) {
        failed = 1;
        printf("     open %s: errno %u\n", path, e);
    }
    return fd;
}

u32 write_all(u32 fd, const char *text) {
    u32 n = 0;
    struct iovec_ v = {(void *)text, strlen(text)};
    OK(w_fd_write(fd, &v, 1, &n));
    return n;
}

u32 read_some(u32 fd, char *to, u32 len) {
    u32 n = 0;
    struct iovec_ v = {to, len};
    u32 e = w_fd_read(fd, &v, 1, &n);
    return e << 16 | n;
}

void touch(u32 dir, const char *path, const char *content) { OK(w_fd_close(create(dir, path, content))); }

u32 create(u32 dir, const char *path, const char *content) {
    u32 fd = open_at(dir, path, O_CREAT_, R_FILE, 0);
    u64 at;
    if (*content) EQ(write_all(fd, content), strlen(content));
    OK(w_fd_seek(fd, 0, SET, &at));
    return fd;
}

void is(u32 dir, const char *path, const char *content) {
    char b[256];
    u32 fd = open_at(dir, path, 0, R_READ, 0), n = read_some(fd, b, sizeof b);
    EQ(n, strlen(content));
    if (n == strlen(content)) EQ(memcmp(b, content, n), 0);
    w_fd_close(fd);
}

struct filestat stat_at(u32 dir, const char *path) {
    struct filestat st = {0};
    OK(w_path_filestat_get(dir, 0, path, strlen(path), &st));
    return st;
}

struct fdstat fdstat(u32 fd) {
    struct fdstat st = {0};
    OK(w_fd_fdstat_get(fd, &st));
    return st;
}

u64 now(u32 clock) {
    u64 t = 0;
    OK(w_clock_time_get(clock, 1, &t));
    return t;
}

/* root is the first preopened directory. */
static u32 root(void) {
    struct prestat st;
    for (u32 fd = 3; w_fd_prestat_get(fd, &st) == SUCCESS; fd++)
        if (st.tag == 0) return fd;
    return -1;
}

/* --list names the cases, an argument runs the one of that number, without one all that aren't alone. */
int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : 0;
    if (only && !strcmp(only, "--list")) {
        for (int i = 0; i < count; i++) printf("%d\t%s\t%s\t%d\n", i, entries[i].function, entries[i].what, entries[i].alone);
        return 0;
    }
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < count; i++) {
        if (only ? atoi(only) != i : entries[i].alone) continue;
        char name[16];
        u32 dir = -1;
        snprintf(name, sizeof name, "c%d", i);
        u32 at = root();
        failed = 0;
        if (at != (u32)-1) {
            struct fdstat st = fdstat(at);
            if (!only) OK(w_path_create_directory(at, name, strlen(name)));
            OK(w_path_open(at, 0, only ? "." : name, only ? 1 : strlen(name), O_DIRECTORY_, st.base, st.inheriting, 0, &dir));
        }
        entries[i].run(dir);
        printf("%s\t%d\n", failed ? "FAIL" : "ok", i);
        fflush(stdout);
    }
    return 0;
}
