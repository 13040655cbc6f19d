/*
 * WASI preview 1 as its witx files have it: every function, by its import, and
 * the numbers that the cases need. Nothing here comes from a libc, so that no
 * libc stands between a case and the host.
 */
#ifndef PREVIEW1_H
#define PREVIEW1_H

#include <stdint.h>

typedef uint32_t u32;
typedef uint64_t u64;
typedef const void *ptr;

#define IMPORT(name, ...) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name))) u32 w_##name(__VA_ARGS__)

IMPORT(args_get, ptr argv, ptr buf);
IMPORT(args_sizes_get, ptr count, ptr size);
IMPORT(environ_get, ptr environ, ptr buf);
IMPORT(environ_sizes_get, ptr count, ptr size);
IMPORT(clock_res_get, u32 id, ptr res);
IMPORT(clock_time_get, u32 id, u64 precision, ptr time);
IMPORT(fd_advise, u32 fd, u64 offset, u64 len, u32 advice);
IMPORT(fd_allocate, u32 fd, u64 offset, u64 len);
IMPORT(fd_close, u32 fd);
IMPORT(fd_datasync, u32 fd);
IMPORT(fd_fdstat_get, u32 fd, ptr stat);
IMPORT(fd_fdstat_set_flags, u32 fd, u32 flags);
IMPORT(fd_fdstat_set_rights, u32 fd, u64 base, u64 inheriting);
IMPORT(fd_filestat_get, u32 fd, ptr stat);
IMPORT(fd_filestat_set_size, u32 fd, u64 size);
IMPORT(fd_filestat_set_times, u32 fd, u64 atim, u64 mtim, u32 flags);
IMPORT(fd_pread, u32 fd, ptr iovs, u32 n, u64 offset, ptr size);
IMPORT(fd_prestat_get, u32 fd, ptr stat);
IMPORT(fd_prestat_dir_name, u32 fd, ptr path, u32 len);
IMPORT(fd_pwrite, u32 fd, ptr iovs, u32 n, u64 offset, ptr size);
IMPORT(fd_read, u32 fd, ptr iovs, u32 n, ptr size);
IMPORT(fd_readdir, u32 fd, ptr buf, u32 len, u64 cookie, ptr used);
IMPORT(fd_renumber, u32 from, u32 to);
IMPORT(fd_seek, u32 fd, u64 offset, u32 whence, ptr at);
IMPORT(fd_sync, u32 fd);
IMPORT(fd_tell, u32 fd, ptr at);
IMPORT(fd_write, u32 fd, ptr iovs, u32 n, ptr size);
IMPORT(path_create_directory, u32 fd, ptr path, u32 len);
IMPORT(path_filestat_get, u32 fd, u32 flags, ptr path, u32 len, ptr stat);
IMPORT(path_filestat_set_times, u32 fd, u32 flags, ptr path, u32 len, u64 atim, u64 mtim, u32 fst);
IMPORT(path_link, u32 fd, u32 flags, ptr path, u32 len, u32 to, ptr name, u32 name_len);
IMPORT(path_open, u32 fd, u32 dirflags, ptr path, u32 len, u32 oflags, u64 base, u64 inheriting, u32 fdflags, ptr opened);
IMPORT(path_readlink, u32 fd, ptr path, u32 len, ptr buf, u32 buf_len, ptr used);
IMPORT(path_remove_directory, u32 fd, ptr path, u32 len);
IMPORT(path_rename, u32 fd, ptr path, u32 len, u32 to, ptr name, u32 name_len);
IMPORT(path_symlink, ptr target, u32 target_len, u32 fd, ptr path, u32 len);
IMPORT(path_unlink_file, u32 fd, ptr path, u32 len);
IMPORT(poll_oneoff, ptr in, ptr out, u32 n, ptr events);
IMPORT(proc_raise, u32 sig);
IMPORT(random_get, ptr buf, u32 len);
IMPORT(sched_yield, void);
IMPORT(sock_accept, u32 fd, u32 flags, ptr accepted);
IMPORT(sock_recv, u32 fd, ptr iovs, u32 n, u32 flags, ptr size, ptr oflags);
IMPORT(sock_send, u32 fd, ptr iovs, u32 n, u32 flags, ptr size);
IMPORT(sock_shutdown, u32 fd, u32 how);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("proc_exit"))) _Noreturn void w_proc_exit(u32 code);

enum errno_ {
    SUCCESS = 0, ACCES = 2, AGAIN = 6, BADF = 8, DQUOT = 19, EXIST = 20, FAULT = 21, FBIG = 22, ILSEQ = 25, INVAL = 28,
    IO = 29, ISDIR = 31, LOOP = 32, MFILE = 33, NAMETOOLONG = 37, NFILE = 41, NOENT = 44, NOSPC = 51, NOSYS = 52,
    NOTCONN = 53, NOTDIR = 54, NOTEMPTY = 55, NOTSOCK = 57, NOTSUP = 58, OVERFLOW_ = 61, PERM = 63, PIPE = 64,
    ROFS = 69, SPIPE = 70, XDEV = 75, NOTCAPABLE = 76, BUSY = 10,
};

enum { UNKNOWN, BLOCK, CHARACTER, DIRECTORY, REGULAR, DGRAM, STREAM, SYMLINK };           /* filetype */
enum { F_APPEND = 1, F_DSYNC = 2, F_NONBLOCK = 4, F_RSYNC = 8, F_SYNC = 16 };           /* fdflags */
enum { O_CREAT_ = 1, O_DIRECTORY_ = 2, O_EXCL_ = 4, O_TRUNC_ = 8 };                     /* oflags */
enum { FOLLOW = 1 };                                                                    /* lookupflags */
enum { T_ATIM = 1, T_ATIM_NOW = 2, T_MTIM = 4, T_MTIM_NOW = 8 };                        /* fstflags */
enum { SET, CUR, END };                                                                 /* whence */
enum { REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU };                                  /* clockid */
enum { EV_CLOCK, EV_READ, EV_WRITE };                                                   /* eventtype */

#define R(n) (1ull << (n))
#define R_DATASYNC R(0)
#define R_READ R(1)
#define R_SEEK R(2)
#define R_SET_FLAGS R(3)
#define R_SYNC R(4)
#define R_TELL R(5)
#define R_WRITE R(6)
#define R_ADVISE R(7)
#define R_ALLOCATE R(8)
#define R_CREATE_DIR R(9)
#define R_CREATE_FILE R(10)
#define R_LINK_SOURCE R(11)
#define R_LINK_TARGET R(12)
#define R_OPEN R(13)
#define R_READDIR R(14)
#define R_READLINK R(15)
#define R_RENAME_SOURCE R(16)
#define R_RENAME_TARGET R(17)
#define R_PATH_STAT R(18)
#define R_PATH_SET_SIZE R(19)
#define R_PATH_SET_TIMES R(20)
#define R_STAT R(21)
#define R_SET_SIZE R(22)
#define R_SET_TIMES R(23)
#define R_SYMLINK R(24)
#define R_REMOVE_DIR R(25)
#define R_UNLINK R(26)
#define R_POLL R(27)
#define R_SHUTDOWN R(28)
#define R_ACCEPT R(29)
#define R_FILE (R_DATASYNC | R_READ | R_SEEK | R_SET_FLAGS | R_SYNC | R_TELL | R_WRITE | R_ADVISE | R_ALLOCATE | R_STAT | R_SET_SIZE | R_SET_TIMES | R_POLL)

struct filestat { u64 dev, ino; uint8_t type; u64 nlink, size, atim, mtim, ctim; };
struct fdstat { uint8_t type; uint16_t flags; u64 base, inheriting; };
struct prestat { uint8_t tag; u32 len; };
struct iovec_ { void *buf; u32 len; };
struct dirent_ { u64 next, ino; u32 namlen; uint8_t type; };
struct subscription {
    u64 userdata;
    uint8_t tag;
    union {
        struct { u32 id; u64 timeout, precision; uint16_t flags; } clock;
        struct { u32 fd; } rw;
    };
};
struct event { u64 userdata; uint16_t error; uint8_t type; u64 nbytes; uint16_t flags; };

_Static_assert(sizeof(struct filestat) == 64 && sizeof(struct fdstat) == 24 && sizeof(struct prestat) == 8 && sizeof(struct dirent_) == 24, "layouts");
_Static_assert(sizeof(struct subscription) == 48 && sizeof(struct event) == 32, "layouts");

/* OUTSIDE is past the end of any memory that a case has; two of it wrap. */
#define OUTSIDE ((void *)0xfffffff0u)

#endif
