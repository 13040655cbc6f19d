/* What examples/http/http.c needs of WASI, for this machine. */
#include <sys/socket.h>

#define __WASI_FDFLAGS_NONBLOCK SOCK_NONBLOCK
typedef int __wasi_fd_t;

static inline int __wasi_sock_accept(int fd, int flags, __wasi_fd_t *out) {
    *out = accept4(fd, 0, 0, flags);
    return *out < 0;
}
