/* A guest that attacks, as its argument says, and a neighbour that is watched
 * meanwhile. What it couldn't do it says, with an exit code of its own.
 *   hostile beat               the neighbour: a line every 50 sleeps of 10 ms
 *   hostile memory             as much as there is                      exit 7
 *   hostile files DIR          open files without end                   exit 8
 *   hostile fill DIR           a file without end                       exit 9
 *   hostile escape DIR         symbolic links out of the folder         exit 10
 *   hostile sockets            accepts on fd 3 and closes nothing       exit 11
 *   hostile inodes DIR         empty files without end                  exit 12
 *   hostile flood | noeol | stderr | spin | recurse | sleep | read | poll
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <wasi/api.h>

static long long now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int longer(const void *a, const void *b)
{
	long long x = *(const long long *)a, y = *(const long long *)b;
	return (x > y) - (x < y);
}

static void beat(void)
{
	long long took[50];
	for (;;) {
		for (int i = 0; i < 50; i++) {
			long long begin = now(CLOCK_MONOTONIC);
			struct timespec ten = { 0, 10000000 };
			nanosleep(&ten, NULL);
			took[i] = now(CLOCK_MONOTONIC) - begin;
		}
		qsort(took, 50, sizeof *took, longer);
		printf("beat %lld %lld\n", now(CLOCK_REALTIME), took[25]);
		fflush(stdout);
	}
}

static int give_up(int code, const char *what, long n)
{
	printf("%s: %s after %ld\n", what, strerror(errno), n);
	fflush(stdout);
	return code;
}

static volatile int depth;

__attribute__((noinline)) static int recurse(int n)
{
	depth = n;
	return recurse(n + 1) + depth;
}

int main(int argc, char **argv)
{
	const char *attack = argc > 1 ? argv[1] : "", *dir = argc > 2 ? argv[2] : "/data";
	char path[256];
	static char block[65536];
	memset(block, 'x', sizeof block);

	if (!strcmp(attack, "beat"))
		beat();
	printf("attack %s\n", attack);
	fflush(stdout);
	if (!strcmp(attack, "memory")) {
		for (long n = 0;; n++) {
			static char *volatile p; /* or the compiler leaves it all out */
			p = malloc(1 << 20);
			if (!p)
				return give_up(7, "memory", n);
			memset(p, n, 1 << 20);
		}
	} else if (!strcmp(attack, "files")) {
		snprintf(path, sizeof path, "%s/one", dir);
		for (long n = 0;; n++)
			if (open(path, O_CREAT | O_RDWR, 0600) < 0)
				return give_up(8, "files", n);
	} else if (!strcmp(attack, "fill")) {
		snprintf(path, sizeof path, "%s/large", dir);
		int fd = open(path, O_CREAT | O_WRONLY, 0600);
		for (long n = 0;; n++)
			if (write(fd, block, sizeof block) < 0)
				return give_up(9, "fill", n);
	} else if (!strcmp(attack, "inodes")) {
		for (long n = 0;; n++) {
			snprintf(path, sizeof path, "%s/%ld", dir, n);
			int fd = open(path, O_CREAT | O_WRONLY, 0600);
			if (fd < 0)
				return give_up(12, "inodes", n);
			close(fd);
		}
	} else if (!strcmp(attack, "escape")) {
		const char *to[] = { "/etc", "../../../../../../../../etc", "/proc/self/root/etc", "/proc/1/root/etc", "..", "/" };
		const char *file[] = { "passwd", "passwd", "passwd", "passwd", "outside", "etc/passwd" };
		for (int i = 0; i < 6; i++) {
			snprintf(path, sizeof path, "%s/link%d", dir, i);
			if (symlink(to[i], path) && errno != EEXIST) /* refusing that is fine, too */
				errno = 0;
			snprintf(path, sizeof path, "%s/link%d/%s", dir, i, file[i]);
			if (open(path, O_RDONLY) >= 0) {
				printf("escaped by %s\n", path);
				return 66;
			}
			snprintf(path, sizeof path, "%s/%s/%s", dir, to[i], file[i]);
			if (open(path, O_RDONLY) >= 0) {
				printf("escaped by %s\n", path);
				return 66;
			}
		}
		return give_up(10, "escape", 12);
	} else if (!strcmp(attack, "sockets")) {
		for (long n = 0;; n++) {
			__wasi_fd_t fd;
			__wasi_errno_t e = __wasi_sock_accept(3, 0, &fd);
			if (e) {
				errno = e;
				return give_up(11, "sockets", n);
			}
		}
	} else if (!strcmp(attack, "flood")) {
		for (long n = 0;; n++)
			printf("flood %ld\n", n);
	} else if (!strcmp(attack, "noeol")) {
		for (;;)
			write(1, block, sizeof block);
	} else if (!strcmp(attack, "stderr")) {
		for (;;)
			write(2, block, 1);
	} else if (!strcmp(attack, "spin")) {
		for (;;)
			depth++;
	} else if (!strcmp(attack, "recurse")) {
		return recurse(0);
	} else if (!strcmp(attack, "sleep")) {
		for (;;)
			sleep(3600);
	} else if (!strcmp(attack, "read")) {
		for (;;)
			if (read(0, path, sizeof path) == 0)
				sleep(3600);
	} else if (!strcmp(attack, "poll")) {
		struct pollfd p = { .fd = 3, .events = POLLIN };
		for (;;)
			poll(&p, 1, -1);
	}
	fprintf(stderr, "no attack %s\n", attack);
	return 64;
}
