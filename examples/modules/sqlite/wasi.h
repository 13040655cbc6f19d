/*
 * What SQLite's Unix layer and shell use and WASI preview 1 hasn't: owners and
 * modes, locks between processes, other programs. A database in a volume has
 * one guest, so every lock is granted.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { F_RDLCK, F_WRLCK, F_UNLCK, F_GETLK = 100, F_SETLK };

static inline int wasi_fcntl(int fd, int command, ...) {
    va_list args;
    va_start(args, command);
    int value = 0;
    if (command == F_GETLK) va_arg(args, struct flock *)->l_type = F_UNLCK;
    else if (command == F_SETFL) value = va_arg(args, int);
    va_end(args);
    if (command == F_GETLK || command == F_SETLK) return 0;
    return fcntl(fd, command, value);
}
#define fcntl wasi_fcntl

static inline int fchmod(int fd, mode_t mode) { return 0; }
static inline int chmod(const char *path, mode_t mode) { return 0; }
static inline int fchown(int fd, uid_t user, gid_t group) { return 0; }
static inline uid_t geteuid(void) { return 1; }
static inline uid_t getuid(void) { return 1; }
