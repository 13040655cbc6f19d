/*
 * A small HTTP/1.1 server, one thread, one poll loop. WASI preview 1 can't
 * open a socket: the listening one is handed in, as file descriptor 3
 * (LISTEN_FDS says how many there are), opened by the runner in the pod's
 * network namespace for the container's port.
 *
 *   GET /         greets
 *   GET /healthz  ok
 *   GET /env/NAME the value of a variable of the environment
 *   GET /crash    traps, to see a restart
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* wasi-libc of 2022 declares accept only for newer targets. */
#include <wasi/api.h>

#define LISTENER 3
#define MAX_CLIENTS 64
#define MAX_REQUEST 4096

struct client {
    int fd;
    size_t have;
    char request[MAX_REQUEST];
};

static struct client *clients[MAX_CLIENTS];
static unsigned long served;

static int accept_client(void) {
    __wasi_fd_t fd;
    if (__wasi_sock_accept(LISTENER, __WASI_FDFLAGS_NONBLOCK, &fd) != 0)
        return -1;
    return (int)fd;
}

/* Answers are short: what a full socket buffer doesn't take is waited for. */
static int send_all(int fd, const char *data, size_t n) {
    while (n > 0) {
        ssize_t k = write(fd, data, n);
        if (k < 0 && errno == EAGAIN) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            if (poll(&p, 1, 5000) <= 0)
                return -1;
            continue;
        }
        if (k <= 0)
            return -1;
        data += k;
        n -= (size_t)k;
    }
    return 0;
}

static int respond(int fd, int code, const char *body, int keep) {
    char head[256];
    const char *text = code == 200 ? "OK" : code == 404 ? "Not Found" : code == 405 ? "Method Not Allowed" : "Bad Request";
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\nConnection: %s\r\n\r\n",
                     code, text, strlen(body), keep ? "keep-alive" : "close");
    return send_all(fd, head, (size_t)n) == 0 && send_all(fd, body, strlen(body)) == 0 ? 0 : -1;
}

static int answer(int fd, char *request) {
    char *method = strtok(request, " ");
    char *path = strtok(NULL, " ");
    char *version = strtok(NULL, "\r\n");
    char *rest = strtok(NULL, "");
    if (!method || !path || !version)
        return respond(fd, 400, "bad request\n", 0), -1;
    int keep = strcmp(version, "HTTP/1.1") == 0 && !(rest && strcasestr(rest, "connection: close"));
    served++;
    if (strcmp(method, "GET") != 0)
        return respond(fd, 405, "only GET\n", 0), -1;
    char body[512];
    if (strcmp(path, "/") == 0) {
        const char *pod = getenv("POD_NAME");
        snprintf(body, sizeof body, "Hello from WebAssembly over HTTP, request %lu of %s\n", served, pod ? pod : "this server");
        return respond(fd, 200, body, keep) == 0 && keep ? 0 : -1;
    }
    if (strcmp(path, "/healthz") == 0)
        return respond(fd, 200, "ok\n", keep) == 0 && keep ? 0 : -1;
    if (strncmp(path, "/env/", 5) == 0 && getenv(path + 5)) {
        snprintf(body, sizeof body, "%s\n", getenv(path + 5));
        return respond(fd, 200, body, keep) == 0 && keep ? 0 : -1;
    }
    if (strcmp(path, "/crash") == 0)
        __builtin_trap();
    return respond(fd, 404, "not found\n", keep) == 0 && keep ? 0 : -1;
}

/* Reads what is there, answers every whole request; -1 closes. */
static int serve(struct client *c) {
    ssize_t n = read(c->fd, c->request + c->have, MAX_REQUEST - 1 - c->have);
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n <= 0)
        return -1;
    c->have += (size_t)n;
    c->request[c->have] = 0;
    char *end;
    while ((end = strstr(c->request, "\r\n\r\n"))) {
        size_t length = (size_t)(end - c->request) + 4;
        end[2] = 0;
        if (answer(c->fd, c->request) != 0)
            return -1;
        memmove(c->request, c->request + length, c->have - length + 1);
        c->have -= length;
    }
    return c->have == MAX_REQUEST - 1 ? -1 : 0;
}

int main(void) {
    if (!getenv("LISTEN_FDS")) {
        fprintf(stderr, "http: no listening socket was handed in (give the container a port)\n");
        return 1;
    }
    fcntl(LISTENER, F_SETFL, O_NONBLOCK);
    printf("listening\n");
    fflush(stdout);
    for (;;) {
        struct pollfd fds[MAX_CLIENTS + 1];
        int who[MAX_CLIENTS + 1], n = 0, free_slot = -1;
        for (int i = 0; i < MAX_CLIENTS; i++) {
            if (!clients[i]) {
                free_slot = i;
                continue;
            }
            who[n] = i;
            fds[n++] = (struct pollfd){.fd = clients[i]->fd, .events = POLLIN};
        }
        if (free_slot >= 0) {
            who[n] = -1;
            fds[n++] = (struct pollfd){.fd = LISTENER, .events = POLLIN};
        }
        if (poll(fds, (nfds_t)n, -1) < 0 && errno != EINTR) {
            perror("http: poll");
            return 1;
        }
        for (int i = 0; i < n; i++) {
            if (!fds[i].revents)
                continue;
            if (who[i] < 0) {
                int fd = accept_client();
                if (fd < 0)
                    continue;
                struct client *c = calloc(1, sizeof *c);
                if (!c) {
                    close(fd);
                    continue;
                }
                c->fd = fd;
                clients[free_slot] = c;
            } else if (serve(clients[who[i]]) != 0) {
                close(clients[who[i]]->fd);
                free(clients[who[i]]);
                clients[who[i]] = NULL;
            }
        }
    }
}
