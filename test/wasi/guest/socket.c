/* Sockets that are handed in. The test is the other side. */
#include "suite.h"

CASE("sock_accept", "NOTSOCK for a file, a directory and stdio, BADF") {
    u32 fd = create(dir, "f", ""), n;
    EQ(w_sock_accept(fd, 0, &n), NOTSOCK);
    EQ(w_sock_accept(dir, 0, &n), NOTSOCK);
    EQ(w_sock_accept(1, 0, &n), NOTSOCK);
    EQ(w_sock_accept(9999, 0, &n), BADF);
}
CASE("sock_recv", "NOTSOCK, BADF") {
    u32 fd = create(dir, "f", ""), n;
    uint16_t flags;
    char b[4];
    struct iovec_ v = {b, 4};
    EQ(w_sock_recv(fd, &v, 1, 0, &n, &flags), NOTSOCK);
    EQ(w_sock_recv(0, &v, 1, 0, &n, &flags), NOTSOCK);
    EQ(w_sock_recv(9999, &v, 1, 0, &n, &flags), BADF);
}
CASE("sock_send", "NOTSOCK, BADF") {
    u32 fd = create(dir, "f", ""), n;
    struct iovec_ v = {"x", 1};
    EQ(w_sock_send(fd, &v, 1, 0, &n), NOTSOCK);
    EQ(w_sock_send(1, &v, 1, 0, &n), NOTSOCK);
    EQ(w_sock_send(9999, &v, 1, 0, &n), BADF);
}
CASE("sock_shutdown", "NOTSOCK, BADF") {
    u32 fd = create(dir, "f", "");
    EQ(w_sock_shutdown(fd, 1), NOTSOCK);
    for (u32 i = 0; i < 3; i++)
        for (u32 how = 1; how < 4; how++) EQ(w_sock_shutdown(i, how), NOTSOCK);
    EQ(w_sock_shutdown(9999, 1), BADF);
}
/* Descriptor 3 listens. The test connects when it is asked to. */
static u32 connection(void) {
    u32 c = -1;
    printf("connect\n");
    fflush(stdout);
    OK(w_sock_accept(3, 0, &c));
    return c;
}
ALONE("sock_accept", "takes a connection, AGAIN without one, INVAL, FAULT; the listener is a stream") {
    u32 c = -1;
    struct fdstat st;
    OK(w_fd_fdstat_set_flags(3, F_NONBLOCK));
    EQ(w_sock_accept(3, 0, &c), AGAIN);
    EQ(w_sock_accept(3, 1, &c), INVAL);
    struct subscription s[] = {{.userdata = 1, .tag = EV_READ, .rw = {3}}, {.userdata = 2, .tag = EV_CLOCK, .clock = {MONOTONIC, 10000000, 0, 0}}};
    struct event e[2];
    u32 n;
    OK(w_poll_oneoff(s, e, 2, &n));
    EQ(n, 1);
    EQ(e[0].userdata, 2);
    printf("connect\n");
    fflush(stdout);
    s[1].clock.timeout = 60000000000;
    OK(w_poll_oneoff(s, e, 2, &n));
    EQ(e[0].userdata, 1);
    OK(w_sock_accept(3, F_NONBLOCK, &c));
    st = fdstat(c);
    EQ(st.type, STREAM);
    EQ(st.flags, F_NONBLOCK);
    EQ(fdstat(3).type, STREAM);
    EQ(fdstat(3).base & R_ACCEPT, R_ACCEPT);
    u64 at;
    EQ(w_fd_seek(c, 0, CUR, &at), SPIPE);
    uint16_t flags;
    char b[4];
    struct iovec_ v = {b, 4};
    EQ(w_sock_recv(c, &v, 1, 0, &n, &flags), AGAIN);
}
ALONE("sock_recv", "peeks, waits for all, takes what there is, ends; INVAL, FAULT") {
    u32 c = connection(), n;
    uint16_t flags = 9;
    char b[8] = {0};
    struct iovec_ v = {b, 4}, rest = {b, 8}, out = {OUTSIDE, 64};
    OK(w_sock_recv(c, &v, 1, 1, &n, &flags)); /* the test sends "hello" */
    EQ(n >= 1, 1);
    EQ(b[0], 'h');
    EQ(flags, 0);
    OK(w_sock_recv(c, &v, 1, 2, &n, &flags));
    EQ(n, 4);
    EQ(memcmp(b, "hell", 4), 0);
    OK(w_sock_recv(c, &rest, 1, 0, &n, &flags));
    EQ(n, 1);
    EQ(w_sock_recv(c, &v, 1, 4, &n, &flags), INVAL);
    EQ(w_sock_recv(c, &out, 1, 0, &n, &flags), FAULT);
    OK(w_sock_shutdown(c, 2)); /* which the test answers with its own end */
    OK(w_sock_recv(c, &v, 1, 0, &n, &flags));
    EQ(n, 0);
}
ALONE("sock_send", "several buffers, and fd_write and fd_read do too; INVAL, FAULT, PIPE after the end") {
    u32 c = connection(), n;
    struct iovec_ v[] = {{"ab", 2}, {"c", 1}}, out = {OUTSIDE, 64};
    char b[8];
    OK(w_sock_send(c, v, 2, 0, &n));
    EQ(n, 3);
    EQ(w_sock_send(c, v, 2, 1, &n), INVAL);
    EQ(w_sock_send(c, &out, 1, 0, &n), FAULT);
    EQ(write_all(c, "def"), 3);
    EQ(read_some(c, b, 8), 5); /* hello */
    OK(w_sock_shutdown(c, 2));
    EQ(w_sock_send(c, v, 1, 0, &n), PIPE);
}
ALONE("sock_shutdown", "each direction; INVAL for neither, NOTCONN for the listener") {
    u32 c = connection(), n;
    uint16_t flags;
    char b[8];
    struct iovec_ v = {b, 8};
    EQ(w_sock_shutdown(c, 0), INVAL);
    EQ(w_sock_shutdown(c, 4), INVAL);
    OK(w_sock_shutdown(c, 1));
    do OK(w_sock_recv(c, &v, 1, 0, &n, &flags)); /* what came before, then the end */
    while (n > 0 && n <= 8);
    OK(w_sock_shutdown(c, 2));
    OK(w_fd_close(c));
    EQ(w_sock_shutdown(c, 3), BADF);
}
