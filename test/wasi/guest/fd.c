/* Descriptors of files: data, positions, flags, sizes and times. */
#include "suite.h"

CASE("fd_write", "writes several buffers at the position and moves it") {
    u32 fd = create(dir, "f", ""), n = 0;
    u64 at = 0;
    struct iovec_ v[] = {{"ab", 2}, {0, 0}, {"cde", 3}};
    OK(w_fd_write(fd, v, 3, &n));
    EQ(n, 5);
    OK(w_fd_tell(fd, &at));
    EQ(at, 5);
    OK(w_fd_write(fd, v, 0, &n));
    EQ(n, 0);
    is(dir, "f", "abcde");
}
CASE("fd_write", "BADF, FAULT of the list, of a buffer and of the result") {
    u32 fd = create(dir, "f", ""), n;
    struct iovec_ v = {"x", 1}, out = {OUTSIDE, 100};
    EQ(w_fd_write(9999, &v, 1, &n), BADF);
    EQ(w_fd_write(-1, &v, 1, &n), BADF);
    EQ(w_fd_write(fd, OUTSIDE, 1, &n), FAULT);
    EQ(w_fd_write(fd, &out, 1, &n), FAULT);
    EQ(w_fd_write(fd, &v, 1u << 31, &n), INVAL);
}
CASE("fd_write", "BADF without the right") {
    touch(dir, "f", "x");
    u32 fd = open_at(dir, "f", 0, R_READ, 0), n;
    struct iovec_ v = {"y", 1};
    EQ(w_fd_write(fd, &v, 1, &n), BADF);
    is(dir, "f", "x");
}
CASE("fd_write", "APPEND writes at the end wherever the position is, and leaves it there") {
    touch(dir, "f", "1234");
    u32 fd = open_at(dir, "f", 0, R_FILE, F_APPEND);
    u64 at = 9;
    OK(w_fd_tell(fd, &at));
    EQ(at, 0);
    write_all(fd, "56");
    OK(w_fd_tell(fd, &at));
    EQ(at, 6);
    OK(w_fd_seek(fd, 1, SET, &at));
    write_all(fd, "7");
    is(dir, "f", "1234567");
}
CASE("fd_read", "fills several buffers, gives less at the end and nothing after it") {
    u32 fd = create(dir, "f", "abcdefg"), n = 0;
    char a[3], b[2];
    struct iovec_ v[] = {{a, 3}, {0, 0}, {b, 2}};
    OK(w_fd_read(fd, v, 3, &n));
    EQ(n, 5);
    EQ(memcmp(a, "abc", 3) | memcmp(b, "de", 2), 0);
    EQ(read_some(fd, a, 3), 2);
    EQ(read_some(fd, a, 3), 0);
    EQ(read_some(fd, a, 0), 0);
}
CASE("fd_read", "BADF, without the right too; FAULT") {
    u32 fd = create(dir, "f", "abc"), wo = open_at(dir, "f", 0, R_WRITE, 0), n;
    char b[4];
    struct iovec_ v = {b, 4}, out = {OUTSIDE, 64};
    EQ(w_fd_read(9999, &v, 1, &n), BADF);
    EQ(w_fd_read(fd, OUTSIDE, 1, &n), FAULT);
    EQ(w_fd_read(fd, &out, 1, &n), FAULT);
    EQ(w_fd_read(wo, &v, 1, &n), BADF);
    EQ(w_fd_read(1, &v, 1, &n), BADF);
}
CASE("fd_pread", "reads at an offset and leaves the position") {
    u32 fd = create(dir, "f", "abcdef"), n = 0;
    char a[2], b[2];
    u64 at = 9;
    struct iovec_ v[] = {{a, 2}, {b, 2}};
    OK(w_fd_pread(fd, v, 2, 1, &n));
    EQ(n, 4);
    EQ(memcmp(a, "bc", 2) | memcmp(b, "de", 2), 0);
    OK(w_fd_pread(fd, v, 2, 5, &n));
    EQ(n, 1);
    OK(w_fd_pread(fd, v, 2, 1000, &n));
    EQ(n, 0);
    OK(w_fd_tell(fd, &at));
    EQ(at, 0);
}
CASE("fd_pread", "BADF, INVAL for an offset past what a file can have, FAULT, SPIPE") {
    u32 fd = create(dir, "f", "abc"), wo = open_at(dir, "f", 0, R_WRITE, 0), n;
    char b[4];
    struct iovec_ v = {b, 4}, out = {OUTSIDE, 64};
    EQ(w_fd_pread(9999, &v, 1, 0, &n), BADF);
    EQ(w_fd_pread(fd, &v, 1, 1ull << 63, &n), INVAL);
    EQ(w_fd_pread(fd, &out, 1, 0, &n), FAULT);
    EQ(w_fd_pread(wo, &v, 1, 0, &n), BADF);
}
ALONE("fd_pread", "SPIPE on a pipe") {
    u32 n;
    char b[4];
    struct iovec_ v = {b, 4};
    EQ(w_fd_pread(0, &v, 1, 0, &n), SPIPE);
}
CASE("fd_pwrite", "writes at an offset, leaves the position, makes a hole") {
    u32 fd = create(dir, "f", "abcdef"), n = 0;
    u64 at = 9;
    struct iovec_ v[] = {{"X", 1}, {"Y", 1}};
    OK(w_fd_pwrite(fd, v, 2, 2, &n));
    EQ(n, 2);
    OK(w_fd_tell(fd, &at));
    EQ(at, 0);
    is(dir, "f", "abXYef");
    OK(w_fd_pwrite(fd, v, 1, 100, &n));
    EQ(stat_at(dir, "f").size, 101);
}
CASE("fd_pwrite", "goes to its offset with APPEND too") {
    touch(dir, "f", "abcd");
    u32 fd = open_at(dir, "f", 0, R_FILE, F_APPEND), n;
    struct iovec_ v = {"X", 1};
    OK(w_fd_pwrite(fd, &v, 1, 1, &n));
    is(dir, "f", "aXcd");
}
CASE("fd_pwrite", "BADF, INVAL, FAULT") {
    u32 fd = create(dir, "f", ""), ro = open_at(dir, "f", 0, R_READ, 0), n;
    struct iovec_ v = {"x", 1}, out = {OUTSIDE, 64};
    EQ(w_fd_pwrite(9999, &v, 1, 0, &n), BADF);
    EQ(w_fd_pwrite(fd, &v, 1, 1ull << 63, &n), INVAL);
    EQ(w_fd_pwrite(fd, &out, 1, 0, &n), FAULT);
    EQ(w_fd_pwrite(ro, &v, 1, 0, &n), BADF);
}
CASE("fd_seek", "from the start, the position and the end, and past it") {
    u32 fd = create(dir, "f", "0123456789");
    u64 at = 0;
    OK(w_fd_seek(fd, 4, SET, &at));
    EQ(at, 4);
    OK(w_fd_seek(fd, -1, CUR, &at));
    EQ(at, 3);
    OK(w_fd_seek(fd, -2, END, &at));
    EQ(at, 8);
    OK(w_fd_seek(fd, 1000, END, &at));
    EQ(at, 1010);
    EQ(stat_at(dir, "f").size, 10);
}
CASE("fd_seek", "INVAL before the start and for an unknown origin, BADF, FAULT") {
    u32 fd = create(dir, "f", "0123456789");
    u64 at = 0;
    EQ(w_fd_seek(fd, -1, SET, &at), INVAL);
    EQ(w_fd_seek(fd, -11, END, &at), INVAL);
    EQ(w_fd_seek(fd, 0, 3, &at), INVAL);
    EQ(w_fd_seek(9999, 0, SET, &at), BADF);
    EQ(w_fd_seek(fd, 0, SET, OUTSIDE), FAULT);
}
CASE("fd_seek", "the right to tell is enough to ask for the position, not to change it") {
    touch(dir, "f", "abc");
    u32 fd = open_at(dir, "f", 0, R_READ | R_TELL, 0), none = open_at(dir, "f", 0, R_READ, 0);
    u64 at = 9;
    OK(w_fd_seek(fd, 0, CUR, &at));
    EQ(at, 0);
    EQ(w_fd_seek(fd, 1, CUR, &at), NOTCAPABLE);
    EQ(w_fd_seek(fd, 0, SET, &at), NOTCAPABLE);
    EQ(w_fd_seek(none, 0, CUR, &at), NOTCAPABLE);
}
ALONE("fd_seek", "SPIPE on a pipe") {
    u64 at;
    EQ(w_fd_seek(0, 0, CUR, &at), SPIPE);
}
CASE("fd_tell", "BADF, FAULT, NOTCAPABLE") {
    u32 fd = create(dir, "f", "abc"), none = open_at(dir, "f", 0, R_READ, 0);
    u64 at = 9;
    OK(w_fd_tell(fd, &at));
    EQ(at, 0);
    EQ(w_fd_tell(9999, &at), BADF);
    EQ(w_fd_tell(fd, OUTSIDE), FAULT);
    EQ(w_fd_tell(none, &at), NOTCAPABLE);
}
ALONE("fd_tell", "SPIPE on a pipe") {
    u64 at;
    EQ(w_fd_tell(0, &at), SPIPE);
}
CASE("fd_advise", "takes every advice and changes nothing; INVAL, BADF, NOTCAPABLE") {
    u32 fd = create(dir, "f", "abc"), none = open_at(dir, "f", 0, R_READ, 0);
    for (u32 advice = 0; advice <= 5; advice++) OK(w_fd_advise(fd, 0, 100, advice));
    EQ(stat_at(dir, "f").size, 3);
    EQ(w_fd_advise(fd, 0, 1, 6), INVAL);
    EQ(w_fd_advise(fd, 0, -1ull, 0), INVAL);
    EQ(w_fd_advise(9999, 0, 1, 0), BADF);
    EQ(w_fd_advise(none, 0, 1, 0), NOTCAPABLE);
}
CASE("fd_allocate", "grows, and never shrinks or clears") {
    u32 fd = create(dir, "f", "abc");
    OK(w_fd_allocate(fd, 0, 100));
    EQ(stat_at(dir, "f").size, 100);
    OK(w_fd_allocate(fd, 1, 1));
    EQ(stat_at(dir, "f").size, 100);
    OK(w_fd_allocate(fd, 90, 20));
    EQ(stat_at(dir, "f").size, 110);
    char b[3];
    EQ(read_some(fd, b, 3), 3);
    EQ(memcmp(b, "abc", 3), 0);
}
CASE("fd_allocate", "INVAL for nothing and for too much, BADF, NOTCAPABLE") {
    u32 fd = create(dir, "f", ""), none = open_at(dir, "f", 0, R_READ | R_WRITE, 0);
    EQ(w_fd_allocate(fd, 0, 0), INVAL);
    EQ(w_fd_allocate(fd, 1ull << 63, 1), INVAL);
    EQ(w_fd_allocate(9999, 0, 1), BADF);
    EQ(w_fd_allocate(none, 0, 1), NOTCAPABLE);
    EQ(stat_at(dir, "f").size, 0);
}
CASE("fd_close", "BADF once closed, and for what never was open") {
    u32 fd = create(dir, "f", "");
    OK(w_fd_close(fd));
    EQ(w_fd_close(fd), BADF);
    EQ(w_fd_close(9999), BADF);
    EQ(w_fd_close(-1), BADF);
}
ALONE("fd_close", "a preopened directory and stdio close too") {
    struct prestat st;
    struct fdstat f;
    OK(w_fd_close(3));
    EQ(w_fd_prestat_get(3, &st), BADF);
    EQ(fdstat(dir).type, DIRECTORY); /* its own */
    OK(w_fd_close(0));
    EQ(w_fd_fdstat_get(0, &f), BADF);
}
CASE("fd_sync", "files and directories; BADF, NOTCAPABLE") {
    u32 fd = create(dir, "f", "abc"), none = open_at(dir, "f", 0, R_READ, 0);
    OK(w_fd_sync(fd));
    OK(w_fd_sync(dir));
    EQ(w_fd_sync(9999), BADF);
    EQ(w_fd_sync(none), NOTCAPABLE);
}
CASE("fd_datasync", "files and directories; BADF, NOTCAPABLE") {
    u32 fd = create(dir, "f", "abc"), none = open_at(dir, "f", 0, R_READ, 0);
    OK(w_fd_datasync(fd));
    OK(w_fd_datasync(dir));
    EQ(w_fd_datasync(9999), BADF);
    EQ(w_fd_datasync(none), NOTCAPABLE);
}
CASE("fd_filestat_get", "what a file is; BADF, FAULT, NOTCAPABLE") {
    u32 fd = create(dir, "f", "abc"), none = open_at(dir, "f", 0, R_READ, 0);
    struct filestat st, other;
    OK(w_fd_filestat_get(fd, &st));
    EQ(st.type, REGULAR);
    EQ(st.size, 3);
    EQ(st.nlink, 1);
    other = stat_at(dir, "f");
    EQ(st.ino == other.ino && st.dev == other.dev && st.mtim == other.mtim, 1);
    OK(w_fd_filestat_get(dir, &other));
    EQ(other.type, DIRECTORY);
    EQ(other.ino != st.ino, 1);
    EQ(w_fd_filestat_get(9999, &st), BADF);
    EQ(w_fd_filestat_get(fd, OUTSIDE), FAULT);
    EQ(w_fd_filestat_get(none, &st), NOTCAPABLE);
}
CASE("fd_filestat_set_size", "shrinks and grows with zeros; INVAL, BADF, NOTCAPABLE") {
    u32 fd = create(dir, "f", "abcdef"), none = open_at(dir, "f", 0, R_READ | R_WRITE, 0);
    char b[5] = "?????";
    OK(w_fd_filestat_set_size(fd, 2));
    is(dir, "f", "ab");
    OK(w_fd_filestat_set_size(fd, 5));
    EQ(read_some(fd, b, 5), 5);
    EQ(memcmp(b, "ab\0\0\0", 5), 0);
    EQ(w_fd_filestat_set_size(fd, -1ull), INVAL);
    EQ(w_fd_filestat_set_size(9999, 0), BADF);
    EQ(w_fd_filestat_set_size(none, 0), NOTCAPABLE);
    EQ(w_fd_filestat_set_size(dir, 0), NOTCAPABLE);
}
CASE("fd_filestat_set_times", "each time alone, to the nanosecond, and now") {
    u32 fd = create(dir, "f", "abc");
    struct filestat st;
    OK(w_fd_filestat_set_times(fd, 1234567890123456789, 1000000000000000007, T_ATIM | T_MTIM));
    OK(w_fd_filestat_get(fd, &st));
    EQ(st.atim, 1234567890123456789);
    EQ(st.mtim, 1000000000000000007);
    OK(w_fd_filestat_set_times(fd, 5, 7, T_MTIM));
    OK(w_fd_filestat_get(fd, &st));
    EQ(st.atim, 1234567890123456789);
    EQ(st.mtim, 7);
    u64 before = now(REALTIME) - 1000000000;
    OK(w_fd_filestat_set_times(fd, 5, 5, T_ATIM_NOW));
    OK(w_fd_filestat_get(fd, &st));
    EQ(st.atim > before, 1);
    EQ(st.mtim, 7);
    OK(w_fd_filestat_set_times(fd, 5, 5, 0));
}
CASE("fd_filestat_set_times", "INVAL for both of one and for unknown flags, BADF, NOTCAPABLE") {
    u32 fd = create(dir, "f", ""), none = open_at(dir, "f", 0, R_READ, 0);
    EQ(w_fd_filestat_set_times(fd, 1, 1, T_ATIM | T_ATIM_NOW), INVAL);
    EQ(w_fd_filestat_set_times(fd, 1, 1, T_MTIM | T_MTIM_NOW), INVAL);
    EQ(w_fd_filestat_set_times(fd, 1, 1, 16), INVAL);
    EQ(w_fd_filestat_set_times(9999, 1, 1, T_ATIM), BADF);
    EQ(w_fd_filestat_set_times(none, 1, 1, T_ATIM), NOTCAPABLE);
}
CASE("fd_fdstat_get", "type, flags and rights; BADF, FAULT") {
    struct fdstat st;
    u32 fd = open_at(dir, "f", O_CREAT_, R_READ | R_WRITE | R_READDIR, F_APPEND | F_SYNC);
    st = fdstat(fd);
    EQ(st.type, REGULAR);
    EQ(st.flags, F_APPEND | F_SYNC);
    EQ(st.base, R_READ | R_WRITE);
    EQ(st.inheriting, 0);
    st = fdstat(dir);
    EQ(st.type, DIRECTORY);
    EQ(st.flags, 0);
    EQ(st.base & (R_SEEK | R_TELL | R_SET_SIZE | R_READ | R_WRITE), 0);
    EQ(w_fd_fdstat_get(9999, &st), BADF);
    EQ(w_fd_fdstat_get(fd, OUTSIDE), FAULT);
}
CASE("fd_fdstat_set_flags", "APPEND on and off, NONBLOCK; NOTSUP for what can't change, INVAL, BADF, NOTCAPABLE") {
    u32 fd = create(dir, "f", "abc"), none = open_at(dir, "f", 0, R_READ, 0);
    u64 at;
    OK(w_fd_fdstat_set_flags(fd, F_APPEND));
    EQ(fdstat(fd).flags, F_APPEND);
    write_all(fd, "d");
    OK(w_fd_fdstat_set_flags(fd, 0));
    OK(w_fd_seek(fd, 0, SET, &at));
    write_all(fd, "X");
    is(dir, "f", "Xbcd");
    OK(w_fd_fdstat_set_flags(fd, F_NONBLOCK));
    EQ(fdstat(fd).flags, F_NONBLOCK);
    EQ(w_fd_fdstat_set_flags(fd, F_SYNC), NOTSUP);
    EQ(fdstat(fd).flags, F_NONBLOCK);
    EQ(w_fd_fdstat_set_flags(fd, 32), INVAL);
    EQ(w_fd_fdstat_set_flags(9999, 0), BADF);
    EQ(w_fd_fdstat_set_flags(none, F_APPEND), NOTCAPABLE);
}
CASE("fd_fdstat_set_rights", "takes away for good, never gives; BADF") {
    u32 fd = create(dir, "f", "abc"), n;
    char b[1];
    struct iovec_ v = {b, 1};
    OK(w_fd_fdstat_set_rights(fd, R_FILE & ~R_READ, 0));
    EQ(w_fd_read(fd, &v, 1, &n), BADF);
    EQ(fdstat(fd).base & R_READ, 0);
    EQ(w_fd_fdstat_set_rights(fd, R_FILE, 0), NOTCAPABLE);
    EQ(w_fd_fdstat_set_rights(fd, 0, R_READ), NOTCAPABLE);
    EQ(fdstat(fd).base & R_WRITE, R_WRITE);
    EQ(w_fd_fdstat_set_rights(9999, 0, 0), BADF);
}
CASE("fd_renumber", "moves over an open one; BADF when either isn't open, nothing onto itself") {
    u32 a = create(dir, "a", "A"), b = create(dir, "b", "B");
    struct fdstat st;
    char c[2];
    OK(w_fd_renumber(a, b));
    EQ(w_fd_fdstat_get(a, &st), BADF);
    EQ(read_some(b, c, 2), 1);
    EQ(c[0], 'A');
    EQ(w_fd_renumber(b, a), BADF);
    EQ(w_fd_renumber(a, b), BADF);
    EQ(w_fd_renumber(b, 9999), BADF);
    OK(w_fd_renumber(b, b));
    EQ(fdstat(b).type, REGULAR);
}
ALONE("fd_renumber", "over a preopened directory and over stdio") {
    struct filestat st, mine;
    struct fdstat f;
    OK(w_fd_filestat_get(dir, &mine));
    OK(w_fd_renumber(dir, 3));
    OK(w_fd_filestat_get(3, &st));
    EQ(st.ino, mine.ino);
    EQ(w_fd_fdstat_get(dir, &f), BADF);
    u32 fd = create(3, "in", "from a file");
    OK(w_fd_renumber(fd, 0));
    char b[4];
    EQ(read_some(0, b, 4), 4);
    EQ(memcmp(b, "from", 4), 0);
    fd = create(3, "err", "");
    OK(w_fd_renumber(2, fd)); /* stderr away, to another number */
    EQ(w_fd_fdstat_get(2, &f), BADF);
}
