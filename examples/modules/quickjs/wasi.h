/*
 * What qjs and its modules std and os use and WASI preview 1 hasn't: threads,
 * other programs, pipes, terminals, shared libraries. What can't be done fails
 * with ENOTSUP, which a script sees as it would on any Unix.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define WASI_LACKS (errno = ENOTSUP, -1)

/* One thread: every lock is free, and who waits is never woken by another. */
#define pthread_t int
#define pthread_attr_t int
#define pthread_mutex_t int
#define pthread_cond_t int
#define PTHREAD_MUTEX_INITIALIZER 0
#define PTHREAD_CREATE_DETACHED 1
static inline int pthread_mutex_init(pthread_mutex_t *m, void *attr) { return 0; }
static inline int pthread_mutex_destroy(pthread_mutex_t *m) { return 0; }
static inline int pthread_mutex_lock(pthread_mutex_t *m) { return 0; }
static inline int pthread_mutex_unlock(pthread_mutex_t *m) { return 0; }
static inline int pthread_cond_init(pthread_cond_t *c, void *attr) { return 0; }
static inline int pthread_cond_destroy(pthread_cond_t *c) { return 0; }
static inline int pthread_cond_signal(pthread_cond_t *c) { return 0; }
static inline int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m) { for (;;) sleep(1 << 20); }
static inline int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until) {
    clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, until, 0);
    return ETIMEDOUT;
}
static inline int pthread_attr_init(pthread_attr_t *a) { return 0; }
static inline int pthread_attr_setdetachstate(pthread_attr_t *a, int state) { return 0; }
static inline int pthread_attr_destroy(pthread_attr_t *a) { return 0; }
static inline int pthread_create(pthread_t *t, pthread_attr_t *a, void *(*run)(void *), void *arg) { return ENOTSUP; }

enum { RTLD_NOW, RTLD_LOCAL };
static inline void *dlopen(const char *path, int flags) { return 0; }
static inline void *dlsym(void *library, const char *name) { return 0; }
static inline int dlclose(void *library) { return WASI_LACKS; }
static inline char *dlerror(void) { return "WASI has no shared libraries"; }

enum { WNOHANG };
static inline pid_t fork(void) { return WASI_LACKS; }
static inline pid_t waitpid(pid_t pid, int *status, int options) { return WASI_LACKS; }
static inline int kill(pid_t pid, int signal) { return WASI_LACKS; }
static inline int execve(const char *path, char **args, char **env) { return WASI_LACKS; }
static inline int pipe(int fds[2]) { return WASI_LACKS; }
static inline int dup(int fd) { return WASI_LACKS; }
static inline int dup2(int from, int to) { return WASI_LACKS; }
static inline FILE *popen(const char *command, const char *mode) { return errno = ENOTSUP, (FILE *)0; }
static inline int pclose(FILE *f) { return WASI_LACKS; }
static inline int setuid(uid_t uid) { return WASI_LACKS; }
static inline int setgid(gid_t gid) { return WASI_LACKS; }

/* By the names alone: links in a guest's folders are for its host to follow. */
static inline char *wasi_realpath(const char *path, char *buffer) {
    char real[4096], *end = real;
    if (access(path, F_OK) < 0) return 0;
    if (*path != '/' && getcwd(real, sizeof real) && strcmp(real, "/")) end += strlen(real);
    for (size_t n; *path; path += n) {
        path += strspn(path, "/");
        n = strcspn(path, "/");
        if (n == 0 || n == 1 && *path == '.') continue;
        if (n == 2 && path[0] == '.' && path[1] == '.') {
            while (end > real && *--end != '/') {}
            continue;
        }
        if (end + n + 2 > real + sizeof real) return errno = ENAMETOOLONG, (char *)0;
        *end++ = '/';
        memcpy(end, path, n);
        end += n;
    }
    if (end == real) *end++ = '/';
    *end = 0;
    return buffer ? strcpy(buffer, real) : strdup(real);
}
#define realpath wasi_realpath

/* In /tmp, which a guest must have been given. */
static inline FILE *wasi_tmpfile(void) {
    char name[32];
    for (int i = 0;; i++) {
        sprintf(name, "/tmp/qjs-%d", i);
        FILE *f = fopen(name, "wx+");
        if (f) unlink(name);
        if (f || errno != EEXIST) return f;
    }
}
#define tmpfile wasi_tmpfile

struct termios { unsigned c_iflag, c_oflag, c_cflag, c_lflag; unsigned char c_cc[2]; };
struct winsize { unsigned short ws_row, ws_col; };
enum { VMIN, VTIME };
enum { IGNBRK, BRKINT, PARMRK, ISTRIP, INLCR, IGNCR, ICRNL, IXON, OPOST, ECHO, ECHONL, ICANON, IEXTEN, CSIZE, PARENB, CS8, TCSANOW, TIOCGWINSZ };
static inline int tcgetattr(int fd, struct termios *t) { return WASI_LACKS; }
static inline int tcsetattr(int fd, int when, const struct termios *t) { return WASI_LACKS; }
