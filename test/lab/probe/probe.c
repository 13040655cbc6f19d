/* A guest for tests: what it does is said by its arguments.
 *   probe hello | args | env NAME | exit N | trap | cat FILE | write FILE TEXT
 *   probe tick MS COUNT [STREAM] | flood BYTES LINE | noeol TEXT | eat MIB | spin | sleep
 *   probe copy    (stdin to stdout, without waiting for ends of lines, to its end)
 *   probe serve   (answers every connection on fd 3 with "served\n")
 * Several commands are separated by "--". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <errno.h>

static void nap(long ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000L };
	nanosleep(&ts, NULL);
}

static int run(int argc, char **argv)
{
	const char *cmd = argv[0];

	if (!strcmp(cmd, "hello")) {
		puts("hello from wasm");
	} else if (!strcmp(cmd, "args")) {
		for (int i = 1; i < argc; i++)
			puts(argv[i]);
	} else if (!strcmp(cmd, "env")) {
		const char *v = getenv(argv[1]);
		printf("%s=%s\n", argv[1], v ? v : "(unset)");
	} else if (!strcmp(cmd, "exit")) {
		exit(atoi(argv[1]));
	} else if (!strcmp(cmd, "trap")) {
		fflush(stdout);
		__builtin_trap();
	} else if (!strcmp(cmd, "cat")) {
		FILE *f = fopen(argv[1], "r");
		char buf[512];
		size_t n;
		if (!f) {
			fprintf(stderr, "cat %s: %s\n", argv[1], strerror(errno));
			exit(1);
		}
		while ((n = fread(buf, 1, sizeof buf, f)) > 0)
			fwrite(buf, 1, n, stdout);
		fclose(f);
	} else if (!strcmp(cmd, "write")) {
		FILE *f = fopen(argv[1], "w");
		if (!f || fprintf(f, "%s\n", argv[2]) < 0 || fclose(f)) {
			fprintf(stderr, "write %s: %s\n", argv[1], strerror(errno));
			exit(1);
		}
	} else if (!strcmp(cmd, "tick")) {
		long ms = atol(argv[1]), n = atol(argv[2]);
		FILE *out = argc > 3 && !strcmp(argv[3], "stderr") ? stderr : stdout;
		for (long i = 0; i < n; i++) {
			fprintf(out, "tick %ld\n", i);
			fflush(out);
			nap(ms);
		}
	} else if (!strcmp(cmd, "flood")) {
		long left = atol(argv[1]), line = atol(argv[2]);
		char *buf = malloc(line + 1);
		memset(buf, 'x', line);
		buf[line] = '\n';
		for (; left > 0; left -= line + 1)
			fwrite(buf, 1, line + 1, stdout);
	} else if (!strcmp(cmd, "noeol")) {
		fputs(argv[1], stdout);
		fflush(stdout);
	} else if (!strcmp(cmd, "eat")) {
		long mib = atol(argv[1]);
		for (long i = 0; i < mib; i++) {
			volatile char *p = malloc(1 << 20); /* volatile: or clang leaves it out */
			if (!p) {
				printf("no memory after %ld MiB\n", i);
				exit(7);
			}
			for (long j = 0; j < 1 << 20; j += 4096)
				p[j] = 1;
		}
		puts("eaten");
	} else if (!strcmp(cmd, "spin")) {
		for (volatile long i = 0;; i++)
			;
	} else if (!strcmp(cmd, "sleep")) {
		fflush(stdout);
		for (;;)
			nap(3600 * 1000);
	} else if (!strcmp(cmd, "copy")) {
		char buf[4096];
		ssize_t n;
		while ((n = read(0, buf, sizeof buf)) > 0)
			for (ssize_t at = 0, k; at < n; at += k)
				if ((k = write(1, buf + at, n - at)) < 0)
					exit(8);
	} else if (!strcmp(cmd, "serve")) {
		for (;;) {
			int c = accept(3, NULL, NULL);
			if (c < 0) {
				if (errno != EAGAIN)
					exit(9);
				nap(5);
				continue;
			}
			send(c, "served\n", 7, 0);
			shutdown(c, SHUT_WR);
			close(c);
		}
	} else {
		fprintf(stderr, "probe: what is %s?\n", cmd);
		return 2;
	}
	return 0;
}

int main(int argc, char **argv)
{
	int start = 1;

	while (start < argc) {
		int end = start;
		while (end < argc && strcmp(argv[end], "--"))
			end++;
		int ret = run(end - start, argv + start);
		if (ret)
			return ret;
		fflush(stdout);
		start = end + 1;
	}
	return 0;
}
