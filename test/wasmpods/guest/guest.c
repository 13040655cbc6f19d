/* What agnhost is to upstream's suite, for Wasm: a guest that does what its arguments
 * say, one command after another, separated by "--". It is /probe.wasm in its image,
 * and what is executed beside it is the same module.
 *
 *   say TEXT | args | env NAME | exit N | trap | nap MS | sleep | spin | eat MIB | copy
 *   cat FILE | ls DIR | exists FILE | write FILE TEXT | append FILE TEXT | fill FILE KIB
 *   once FILE N    the first time, makes FILE and exits with N
 *   wait FILE      until it is there
 *   watch FILE     says what is in it, whenever that changes
 *   pair DIR       says what the files a and b of DIR/..data have, when that changes,
 *                  and "torn" if one of them has something else than the other
 *   http           on the first socket: /healthz is 200 until /fail was asked, /exit?N ends
 *   grpc           on the first socket: grpc.health.v1.Health/Check says SERVING */
#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LISTENER 3

static void nap(long ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000L };
	nanosleep(&ts, NULL);
}

static int fail(const char *what, const char *name)
{
	fprintf(stderr, "%s %s: %s\n", what, name, strerror(errno));
	return 1;
}

static long slurp(const char *name, char *buf, size_t size)
{
	int fd = open(name, O_RDONLY);
	long have = 0, n;
	if (fd < 0)
		return -1;
	while ((n = read(fd, buf + have, size - have)) > 0)
		have += n;
	close(fd);
	return n < 0 ? n : have;
}

static int put(const char *name, const char *mode, const char *text)
{
	FILE *f = fopen(name, mode);
	if (!f || fprintf(f, "%s\n", text) < 0 || fclose(f))
		return fail("write", name);
	return 0;
}

/* the next connection, and whether it has something to read */
static int next(void)
{
	struct pollfd p = { LISTENER, POLLIN, 0 };
	poll(&p, 1, -1);
	return accept(LISTENER, NULL, NULL);
}

static int readable(int fd)
{
	struct pollfd p = { fd, POLLIN, 0 };
	return poll(&p, 1, 5000) > 0;
}

static int http(void)
{
	int healthy = 1;
	for (;;) {
		char buf[2048];
		long have = 0, n;
		int c = next();
		if (c < 0)
			continue;
		/* what only connects, as a TCP probe does, ends here */
		while (have < (long)sizeof buf - 1 && readable(c) && (n = recv(c, buf + have, sizeof buf - 1 - have, 0)) > 0) {
			have += n;
			buf[have] = 0;
			if (strstr(buf, "\r\n\r\n"))
				break;
		}
		buf[have] = 0;
		if (!strncmp(buf, "GET /exit?", 10))
			exit(atoi(buf + 10));
		if (!strncmp(buf, "GET /fail", 9))
			healthy = 0;
		if (!strncmp(buf, "GET /heal ", 10))
			healthy = 1;
		if (have) {
			printf("%.*s\n", (int)strcspn(buf, "\r\n"), buf);
			fflush(stdout);
			const char *said = healthy || strncmp(buf, "GET /healthz", 12)
				? "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"
				: "HTTP/1.1 500 Sick\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsick\n";
			send(c, said, strlen(said), 0);
		}
		shutdown(c, SHUT_WR);
		close(c);
	}
}

static int all(int c, void *buf, long n)
{
	for (long have = 0, k; have < n; have += k)
		if (!readable(c) || (k = recv(c, (char *)buf + have, n - have, 0)) <= 0)
			return 0;
	return 1;
}

/* As little of HTTP/2 (RFC 9113) as one unary call needs: whatever is asked, the
 * answer is SERVING. Headers are HPACK literals without indexing. */
static int grpc(void)
{
	static const unsigned char settings[] = { 0, 0, 0, 4, 0, 0, 0, 0, 0 }, ack[] = { 0, 0, 0, 4, 1, 0, 0, 0, 0 };
	static const unsigned char headers[] = "\x88\x00\x0c" "content-type" "\x10" "application/grpc";
	static const unsigned char data[] = { 0, 0, 0, 0, 2, 8, 1 };
	static const unsigned char trailers[] = "\x00\x0b" "grpc-status" "\x01" "0";
	for (;;) {
		unsigned char h[9], body[16384];
		int c = next();
		if (c < 0)
			continue;
		if (!all(c, body, 24)) { /* the preface */
			close(c);
			continue;
		}
		send(c, settings, sizeof settings, 0);
		while (all(c, h, 9)) {
			long n = h[0] << 16 | h[1] << 8 | h[2];
			if (n > (long)sizeof body || (n && !all(c, body, n)))
				break;
			if (h[3] == 4 && !(h[4] & 1))
				send(c, ack, sizeof ack, 0);
			if (h[3] == 6 && !(h[4] & 1)) { /* ping */
				unsigned char pong[17] = { 0, 0, 8, 6, 1 };
				memcpy(pong + 9, body, 8);
				send(c, pong, sizeof pong, 0);
			}
			if ((h[3] == 0 || h[3] == 1) && h[4] & 1) { /* the request has ended */
				unsigned char out[128], *at = out;
				const struct { const unsigned char *p; long n; int type, flags; } frames[] = {
					{ headers, sizeof headers - 1, 1, 4 }, { data, sizeof data, 0, 0 }, { trailers, sizeof trailers - 1, 1, 5 } };
				for (int i = 0; i < 3; i++) {
					unsigned char f[9] = { 0, 0, frames[i].n, frames[i].type, frames[i].flags, h[5], h[6], h[7], h[8] };
					memcpy(at, f, 9);
					memcpy(at + 9, frames[i].p, frames[i].n);
					at += 9 + frames[i].n;
				}
				send(c, out, at - out, 0);
			}
		}
		close(c);
	}
}

/* Both files by one folder, which is what an atomic swap is for. */
static void pair(const char *dir)
{
	char path[256], has[2][64], was[64] = "";
	snprintf(path, sizeof path, "%s/..data", dir);
	for (;;) {
		int d = open(path, O_RDONLY | O_DIRECTORY), both = d >= 0;
		for (int i = 0; i < 2 && both; i++) {
			int fd = openat(d, i ? "b" : "a", O_RDONLY);
			long n = fd < 0 ? -1 : read(fd, has[i], sizeof has[i] - 1);
			close(fd);
			if (!(both = n >= 0)) /* the folder was replaced and went meanwhile */
				break;
			has[i][n] = 0;
		}
		close(d);
		if (!both || (!strcmp(has[0], has[1]) && !strcmp(has[0], was)))
			continue;
		if (strcmp(has[0], has[1]))
			printf("torn: %s and %s\n", has[0], has[1]);
		else
			printf("both have %s\n", has[0]);
		strcpy(was, has[0]);
		fflush(stdout);
	}
}

static int run(int argc, char **argv)
{
	const char *cmd = argv[0], *a = argc > 1 ? argv[1] : "", *b = argc > 2 ? argv[2] : "";
	static char buf[1 << 16], was[1 << 16];
	long n, had = -2;

	if (!strcmp(cmd, "say")) {
		puts(a);
	} else if (!strcmp(cmd, "args")) {
		for (int i = 1; i < argc; i++)
			puts(argv[i]);
	} else if (!strcmp(cmd, "env")) {
		const char *v = getenv(a);
		printf("%s=%s\n", a, v ? v : "(unset)");
	} else if (!strcmp(cmd, "exit")) {
		exit(atoi(a));
	} else if (!strcmp(cmd, "trap")) {
		fflush(stdout);
		__builtin_trap();
	} else if (!strcmp(cmd, "nap")) {
		fflush(stdout);
		nap(atol(a));
	} else if (!strcmp(cmd, "sleep")) {
		fflush(stdout);
		for (;;)
			nap(3600 * 1000);
	} else if (!strcmp(cmd, "spin")) {
		for (volatile long i = 0;; i++)
			;
	} else if (!strcmp(cmd, "eat")) {
		for (long i = 0; i < atol(a); i++) {
			volatile char *p = malloc(1 << 20); /* volatile: or clang leaves it out */
			if (!p)
				exit(7);
			for (long j = 0; j < 1 << 20; j += 4096)
				p[j] = 1;
		}
		puts("eaten");
	} else if (!strcmp(cmd, "copy")) {
		while ((n = read(0, buf, sizeof buf)) > 0)
			for (long at = 0, k; at < n; at += k)
				if ((k = write(1, buf + at, n - at)) < 0)
					exit(8);
	} else if (!strcmp(cmd, "cat")) {
		if ((n = slurp(a, buf, sizeof buf)) < 0)
			return fail("cat", a);
		fwrite(buf, 1, n, stdout);
	} else if (!strcmp(cmd, "ls")) {
		DIR *d = opendir(a);
		if (!d)
			return fail("ls", a);
		for (struct dirent *e; (e = readdir(d));)
			if (e->d_name[0] != '.')
				puts(e->d_name);
		closedir(d);
	} else if (!strcmp(cmd, "exists")) {
		if (access(a, F_OK))
			return fail("exists", a);
	} else if (!strcmp(cmd, "write")) {
		return put(a, "w", b);
	} else if (!strcmp(cmd, "append")) {
		return put(a, "a", b);
	} else if (!strcmp(cmd, "fill")) {
		FILE *f = fopen(a, "w");
		for (long i = 0; f && i < atol(b); i++)
			if (fwrite(buf, 1, 1024, f) != 1024)
				return fail("fill", a);
		if (!f || fclose(f))
			return fail("fill", a);
	} else if (!strcmp(cmd, "once")) {
		if (access(a, F_OK)) {
			put(a, "w", "was here");
			printf("exits with %s\n", b);
			exit(atoi(b));
		}
	} else if (!strcmp(cmd, "wait")) {
		for (fflush(stdout); access(a, F_OK);)
			nap(100);
	} else if (!strcmp(cmd, "watch")) {
		for (;; nap(200)) {
			if ((n = slurp(a, buf, sizeof buf)) == had && !memcmp(buf, was, n > 0 ? n : 0))
				continue;
			had = n;
			memcpy(was, buf, n > 0 ? n : 0);
			printf("%s: %.*s\n", a, n > 0 ? (int)n : 4, n > 0 ? buf : "none");
			fflush(stdout);
		}
	} else if (!strcmp(cmd, "pair")) {
		pair(a);
	} else if (!strcmp(cmd, "http")) {
		fflush(stdout);
		return http();
	} else if (!strcmp(cmd, "grpc")) {
		fflush(stdout);
		return grpc();
	} else {
		fprintf(stderr, "guest: what is %s?\n", cmd);
		return 2;
	}
	return 0;
}

int main(int argc, char **argv)
{
	for (int start = 1; start < argc;) {
		int end = start, ret;
		while (end < argc && strcmp(argv[end], "--"))
			end++;
		ret = run(end - start, argv + start);
		fflush(stdout);
		if (ret)
			return ret;
		start = end + 1;
	}
	return 0;
}
