/*
 * Uses the socket extension as wasmedge_wasi_socket does, by its imports, and
 * says what came of it. Every word after the program's name is a step:
 *
 *   tcp=A.B.C.D:PORT      connects, sends "ping", prints what comes back
 *   tcp6=PORT             the same with ::1, in the long form of an address
 *   nonblock=A.B.C.D:PORT without waiting, then by poll_oneoff
 *   udp=A.B.C.D:PORT      sends to it from a socket that is bound, prints the answer and from where
 *   name=NAME             prints its addresses
 *   refused               what isn't outbound
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../guest/preview1.h"

struct address { void *buf; u32 len; };
struct sockaddr_ { uint8_t family; u32 len; uint8_t *data; };
struct addrinfo_ { uint16_t flags; uint8_t family, socktype, protocol; u32 addrlen; struct sockaddr_ *addr; char *name; u32 namelen; struct addrinfo_ *next; };

IMPORT(sock_open, u32 family, u32 type, ptr fd);
IMPORT(sock_bind, u32 fd, ptr address, u32 port);
IMPORT(sock_listen, u32 fd, u32 backlog);
IMPORT(sock_connect, u32 fd, ptr address, u32 port);
IMPORT(sock_connect_v2, u32 fd, ptr address, u32 port);
IMPORT(sock_send_to, u32 fd, ptr iovs, u32 n, ptr address, u32 port, u32 flags, ptr sent);
IMPORT(sock_recv_from, u32 fd, ptr iovs, u32 n, ptr address, u32 flags, ptr port, ptr len, ptr oflags);
IMPORT(sock_getlocaladdr, u32 fd, ptr address, ptr kind, ptr port);
IMPORT(sock_getpeeraddr, u32 fd, ptr address, ptr kind, ptr port);
IMPORT(sock_getpeeraddr_v2, u32 fd, ptr address, ptr port);
IMPORT(sock_getaddrinfo, ptr node, u32 node_len, ptr service, u32 service_len, ptr hint, ptr res, u32 most, ptr count);
IMPORT(sock_getsockopt, u32 fd, u32 level, u32 name, ptr value, ptr len);
IMPORT(sock_setsockopt, u32 fd, u32 level, u32 name, ptr value, u32 len);

static u32 must(u32 e, const char *what) {
    if (e) {
        printf("%s: errno %u\n", what, e);
        exit(1);
    }
    return e;
}
#define MUST(call) must(call, #call)

static u32 parse(const char *text, uint8_t ip[4]) {
    unsigned a, b, c, d, port;
    if (sscanf(text, "%u.%u.%u.%u:%u", &a, &b, &c, &d, &port) != 5) exit(2);
    ip[0] = a, ip[1] = b, ip[2] = c, ip[3] = d;
    return port;
}

static void talk(u32 fd, const char *step) {
    char b[64];
    u32 n;
    uint16_t flags;
    struct iovec_ out = {"ping", 4}, in = {b, sizeof b - 1};
    MUST(w_sock_send(fd, &out, 1, 0, &n));
    MUST(w_sock_recv(fd, &in, 1, 0, &n, &flags));
    b[n] = 0;
    printf("%s: %s\n", step, b);
}

static void tcp(const char *to) {
    u32 fd, kind = 0, port = 0, want, len = 4;
    int v = 0;
    uint8_t ip[4], peer[16] = {0};
    struct address a = {ip, 4}, p = {peer, 16};
    want = parse(to, ip);
    MUST(w_sock_open(1, 2, &fd));
    MUST(w_sock_connect(fd, &a, want));
    MUST(w_sock_getpeeraddr(fd, &p, &kind, &port));
    if (kind != 4 || port != want || memcmp(peer, ip, 4)) printf("peer is another one\n");
    MUST(w_sock_getlocaladdr(fd, &p, &kind, &port));
    if (kind != 4 || port == 0 || peer[0] != 127) printf("it has no address\n");
    MUST(w_sock_getsockopt(fd, 0, 1, &v, &len));
    if (v != 2) printf("type %d\n", v);
    v = 1;
    MUST(w_sock_setsockopt(fd, 0, 7, &v, 4));
    struct { u64 sec, usec; } wait = {0, 50000};
    MUST(w_sock_setsockopt(fd, 0, 11, &wait, sizeof wait));
    char b[4];
    struct iovec_ in = {b, 4};
    uint16_t flags;
    u32 n;
    if (w_sock_recv(fd, &in, 1, 0, &n, &flags) != AGAIN) printf("the timeout didn't come\n");
    wait.sec = 20;
    MUST(w_sock_setsockopt(fd, 0, 11, &wait, sizeof wait));
    talk(fd, "tcp");
    MUST(w_sock_shutdown(fd, 2));
    MUST(w_fd_close(fd));
}

static void tcp6(const char *port) {
    u32 fd, p = 0;
    uint8_t big[128] = {2, 0};
    big[17] = 1;
    struct address a = {big, 128};
    MUST(w_sock_open(2, 2, &fd));
    MUST(w_sock_connect_v2(fd, &a, atoi(port)));
    memset(big, 0, sizeof big);
    MUST(w_sock_getpeeraddr_v2(fd, &a, &p));
    if (big[0] != 2 || big[17] != 1 || p != (u32)atoi(port)) printf("peer is another one\n");
    talk(fd, "tcp6");
}

static void nonblock(const char *to) {
    u32 fd, n, len = 4, e;
    int v = -1;
    uint8_t ip[4];
    struct address a = {ip, 4};
    u32 port = parse(to, ip);
    MUST(w_sock_open(1, 2, &fd));
    MUST(w_fd_fdstat_set_flags(fd, F_NONBLOCK));
    e = w_sock_connect(fd, &a, port);
    if (e != 0 && e != 26) printf("connect: %u, want INPROGRESS\n", e);
    struct subscription s[] = {{.userdata = 1, .tag = EV_WRITE, .rw = {fd}}, {.userdata = 2, .tag = EV_CLOCK, .clock = {MONOTONIC, 20000000000, 0, 0}}};
    struct event ev[2];
    MUST(w_poll_oneoff(s, ev, 2, &n));
    MUST(w_sock_getsockopt(fd, 0, 2, &v, &len));
    printf("nonblock: event %u, error %d\n", (u32)ev[0].userdata, v);
}

static void udp(const char *to) {
    u32 fd, n, port = 0, want;
    uint8_t ip[4], from[128] = {0}, any[4] = {127, 0, 0, 1};
    char b[64];
    uint16_t flags;
    struct address a = {ip, 4}, f = {from, 128}, local = {any, 4};
    struct iovec_ out[] = {{"pi", 2}, {"ng", 2}}, in = {b, sizeof b - 1};
    want = parse(to, ip);
    MUST(w_sock_open(1, 1, &fd));
    MUST(w_sock_bind(fd, &local, 0));
    MUST(w_sock_send_to(fd, out, 2, &a, want, 0, &n));
    MUST(w_sock_recv_from(fd, &in, 1, &f, 0, &port, &n, &flags));
    b[n] = 0;
    printf("udp: %s from %u.%u.%u.%u%s\n", b, from[2], from[3], from[4], from[5], port == want && from[0] == 1 ? "" : ", another port");
    in.len = 2; /* a datagram that doesn't fit is cut off, and that is said */
    MUST(w_sock_send_to(fd, out, 2, &a, want, 0, &n));
    MUST(w_sock_recv_from(fd, &in, 1, &f, 0, &port, &n, &flags));
    printf("udp: %u, truncated %u\n", n, flags);
}

enum { MOST = 8 };
static void name(const char *name) {
    static struct addrinfo_ list[MOST];
    static struct sockaddr_ addrs[MOST];
    static uint8_t data[MOST][26];
    struct addrinfo_ hint = {.socktype = 2}, *head = list;
    u32 n = 0, e;
    for (int i = 0; i < MOST; i++) {
        addrs[i] = (struct sockaddr_){0, 26, data[i]};
        list[i] = (struct addrinfo_){.addr = &addrs[i], .next = i + 1 < MOST ? &list[i + 1] : 0};
    }
    e = w_sock_getaddrinfo(name, strlen(name) + 1, "80", 3, &hint, &head, MOST, &n);
    printf("%s:", name);
    if (e) printf(" errno %u", e);
    for (u32 i = 0; i < n; i++) {
        uint8_t *d = list[i].addr->data;
        if ((d[0] << 8 | d[1]) != 80 || list[i].socktype != 2 || list[i].protocol != 1) printf(" (not for port 80 by TCP)");
        if (list[i].family == 1) printf(" %u.%u.%u.%u", d[2], d[3], d[4], d[5]);
        else printf(" %02x%02x::%02x", d[6], d[7], d[21]);
    }
    printf("\n");
}

static void refused(void) {
    u32 fd;
    uint8_t ip[4] = {127, 0, 0, 1};
    struct address a = {ip, 4}, bad = {OUTSIDE, 64}, odd = {ip, 3};
    MUST(w_sock_open(1, 2, &fd));
    printf("refused: bind %u, listen %u, family %u, type %u, address %u %u, port %u, option %u\n",
           w_sock_bind(fd, &a, 0), w_sock_listen(fd, 1), w_sock_open(3, 2, &fd), w_sock_open(1, 0, &fd), w_sock_connect(fd, &bad, 1),
           w_sock_connect(fd, &odd, 1), w_sock_connect(fd, &a, 65536), w_sock_setsockopt(fd, 0, 14, "eth0", 4));
    printf("refused: not a socket %u, closed %u, nobody there %u\n", w_sock_connect(1, &a, 1), w_sock_connect(9999, &a, 1), w_sock_connect(fd, &a, 1));
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        char *v = strchr(argv[i], '=');
        if (v) *v++ = 0;
        if (!strcmp(argv[i], "tcp")) tcp(v);
        else if (!strcmp(argv[i], "tcp6")) tcp6(v);
        else if (!strcmp(argv[i], "nonblock")) nonblock(v);
        else if (!strcmp(argv[i], "udp")) udp(v);
        else if (!strcmp(argv[i], "name")) name(v);
        else refused();
        fflush(stdout);
    }
    return 0;
}
