/* The stand-in for busybox in critest's run with Wasm images: one module that is
 * what argv[0] says, with a shell for the command lines that the specs use. WASI has
 * no processes, so the shell calls the commands as functions: a command that never
 * ends never gives back control, a pipe is a buffer between two of them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WORDS 64

/* What a command reads and says; a pipe and $(...) put buffers there. */
static FILE *in, *out, *err;

static int fail(const char *cmd, const char *what)
{
	fprintf(err, "%s: %s: %s\n", cmd, what, strerror(errno));
	return 1;
}

static void nap(double seconds)
{
	struct timespec ts = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };
	fflush(NULL);
	nanosleep(&ts, NULL);
}

static int do_echo(int argc, char **argv)
{
	int i = 1, newline = 1;

	if (argc > 1 && !strcmp(argv[1], "-n"))
		newline = 0, i = 2;
	for (; i < argc; i++)
		fprintf(out, "%s%s", argv[i], i + 1 < argc ? " " : "");
	if (newline)
		fputc('\n', out);
	return 0;
}

static int do_sleep(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "infinity"))
		for (;;)
			nap(3600);
	nap(argc > 1 ? atof(argv[1]) : 0);
	return 0;
}

/* top says what it can know of a system with one process: the time. */
static int do_top(int argc, char **argv)
{
	for (;;) {
		time_t now = time(NULL);
		fprintf(out, "top: 1 task, %s", ctime(&now));
		nap(5);
	}
}

static int do_cat(int argc, char **argv)
{
	char buf[4096];
	size_t n;

	for (int i = 1; i < argc || i == 1; i++) {
		FILE *f = argc > 1 ? fopen(argv[i], "r") : in;
		if (!f)
			return fail("cat", argv[i]);
		while ((n = fread(buf, 1, sizeof buf, f)) > 0)
			fwrite(buf, 1, n, out);
		if (f != in)
			fclose(f);
	}
	return 0;
}

static int do_ls(int argc, char **argv)
{
	const char *dir = "/";
	struct stat st;

	for (int i = 1; i < argc; i++)
		if (argv[i][0] != '-')
			dir = argv[i];
	if (!stat(dir, &st) && !S_ISDIR(st.st_mode)) {
		fprintf(out, "%s\n", dir);
		return 0;
	}
	DIR *d = opendir(dir);
	if (!d)
		return fail("ls", dir);
	for (struct dirent *e; (e = readdir(d));)
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			fprintf(out, "%s\n", e->d_name);
	closedir(d);
	return 0;
}

/* grep knows a fixed text, and -q. */
static int do_grep(int argc, char **argv)
{
	int quiet = argc > 1 && !strcmp(argv[1], "-q"), found = 1;
	char *line = NULL;
	size_t size = 0;

	while (argc > 1 + quiet && getline(&line, &size, in) > 0)
		if (strstr(line, argv[1 + quiet])) {
			found = 0;
			if (!quiet)
				fputs(line, out);
		}
	free(line);
	return found;
}

static int do_touch(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		int fd = open(argv[i], O_WRONLY | O_CREAT, 0644);
		if (fd < 0)
			return fail("touch", argv[i]);
		close(fd);
	}
	return 0;
}

static int do_mkdir(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (argv[i][0] != '-' && mkdir(argv[i], 0755) && errno != EEXIST)
			return fail("mkdir", argv[i]);
	return 0;
}

static int do_test(int argc, char **argv)
{
	struct stat st;

	return argc < 3 || strcmp(argv[1], "-f") || stat(argv[2], &st) || !S_ISREG(st.st_mode);
}

static int do_env(int argc, char **argv)
{
	extern char **environ;

	for (char **e = environ; *e; e++)
		fprintf(out, "%s\n", *e);
	return 0;
}

/* A guest learns its host's name from the environment, and can't set it. */
static int do_hostname(int argc, char **argv)
{
	const char *name = getenv("HOSTNAME");

	errno = ENOSYS;
	if (argc > 1)
		return fail("hostname", argv[1]);
	fprintf(out, "%s\n", name ? name : "localhost");
	return 0;
}

/* dd reads zeroes and throws them away, in blocks of bs=. What counts is their
 * memory, which is taken piece by piece as it is filled. */
static int do_dd(int argc, char **argv)
{
	enum { PIECE = 64 << 10 };
	size_t size = 512, pieces;

	for (int i = 1; i < argc; i++)
		if (!strncmp(argv[i], "bs=", 3)) {
			char *unit;
			size = strtoul(argv[i] + 3, &unit, 10);
			size <<= *unit == 'M' ? 20 : *unit == 'k' ? 10 : 0;
		}
	pieces = (size + PIECE - 1) / PIECE;
	volatile char **block = calloc(pieces, sizeof *block);
	for (size_t i = 0; block && i < pieces; i++) {
		if (!(block[i] = malloc(PIECE)))
			return fail("dd", "memory");
		for (size_t j = 0; j < PIECE; j += 4096)
			block[i][j] = 1;
	}
	for (;;)
		for (size_t i = 0; i < pieces; i++)
			block[i][0] = 0;
}

/* httpd answers each connection on the listening socket that it is handed as fd 3. */
static int do_httpd(int argc, char **argv)
{
	static const char page[] = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 23\r\nConnection: close\r\n\r\n<title>Welcome</title>\n";
	char buf[4096];

	fprintf(out, "%s: serving\n", argv[0]);
	fflush(out);
	for (;;) {
		int conn = accept(3, NULL, NULL);
		if (conn < 0) {
			if (errno == EAGAIN || errno == EINTR) {
				nap(0.01);
				continue;
			}
			return fail(argv[0], "accept");
		}
		if (recv(conn, buf, sizeof buf, 0) > 0)
			send(conn, page, sizeof page - 1, 0);
		shutdown(conn, SHUT_RDWR);
		close(conn);
	}
}

static int do_true(int argc, char **argv) { return 0; }
static int do_false(int argc, char **argv) { return 1; }
static int do_sh(int argc, char **argv);

static const struct {
	const char *name;
	int (*run)(int, char **);
} commands[] = {
	{ "cat", do_cat }, { "dd", do_dd }, { "echo", do_echo }, { "env", do_env }, { "false", do_false },
	{ "grep", do_grep },
	{ "hostname", do_hostname }, { "httpd", do_httpd }, { "ls", do_ls }, { "mkdir", do_mkdir }, { "nginx", do_httpd },
	{ "sh", do_sh }, { "sleep", do_sleep }, { "[", do_test }, { "top", do_top }, { "touch", do_touch }, { "true", do_true },
};

static int run(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/');

	name = name ? name + 1 : argv[0];
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (!strcmp(commands[i].name, name))
			return commands[i].run(argc, argv);
	fprintf(err, "sh: %s: not found\n", argv[0]);
	return 127;
}

static int eval(char *line);

/* capture runs a line with its output in memory, without the last newlines. */
static char *capture(char *line)
{
	char *text = NULL;
	size_t n = 0;
	FILE *saved = out;

	out = open_memstream(&text, &n);
	eval(line);
	fclose(out);
	out = saved;
	while (n > 0 && text[n - 1] == '\n')
		text[--n] = 0;
	return text;
}

/* closing finds the parenthesis that closes the one before s. */
static char *closing(char *s)
{
	int depth = 1;

	for (; *s; s++) {
		depth += *s == '(' ? 1 : *s == ')' ? -1 : 0;
		if (!depth)
			return s;
	}
	return s;
}

/* simple runs one command: words, quotes, $(...), $NAME and 2>&1. */
static int simple(char *s)
{
	char *argv[WORDS + 1];
	int argc = 0, merge = 0;

	while (argc < WORDS) {
		while (*s == ' ' || *s == '\t')
			s++;
		if (!*s)
			break;
		if (!strncmp(s, "2>&1", 4)) {
			merge = 1;
			s += 4;
			continue;
		}
		char *word = NULL, quote = 0;
		size_t n;
		FILE *w = open_memstream(&word, &n);
		for (; *s && (quote || (*s != ' ' && *s != '\t')); s++) {
			if ((*s == '\'' || *s == '"') && (!quote || quote == *s)) {
				quote = quote ? 0 : *s;
			} else if (*s == '$' && quote != '\'' && s[1] == '(') {
				char *end = closing(s + 2), *inner = strndup(s + 2, (size_t)(end - s - 2));
				char *text = capture(inner);
				fputs(text, w);
				free(text);
				free(inner);
				s = *end ? end : end - 1;
			} else if (*s == '$' && quote != '\'') {
				size_t len = strspn(s + 1, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_");
				char *name = strndup(s + 1, len);
				const char *value = getenv(name);
				fputs(value ? value : "", w);
				free(name);
				s += len;
			} else {
				fputc(*s, w);
			}
		}
		fclose(w);
		argv[argc++] = word;
	}
	argv[argc] = NULL;
	if (!argc)
		return 0;
	FILE *saved = err;
	if (merge)
		err = out;
	int rc = run(argc, argv);
	err = saved;
	for (int i = 0; i < argc; i++)
		free(argv[i]);
	return rc;
}

/* operator finds the next ; && || | or newline outside of quotes and parentheses. */
static char *operator(char *s)
{
	char quote = 0;
	int depth = 0;

	for (; *s; s++) {
		if (quote) {
			quote = *s == quote ? 0 : quote;
		} else if (*s == '\'' || *s == '"') {
			quote = *s;
		} else if (*s == '(' || *s == ')') {
			depth += *s == '(' ? 1 : -1;
		} else if (!depth && (*s == ';' || *s == '\n' || *s == '|' || !strncmp(s, "&&", 2))) {
			return s;
		}
	}
	return s;
}

/* piped runs a command with its output in memory, for the next one to read. */
static FILE *piped(char *s)
{
	char *text = NULL;
	size_t n = 0;
	FILE *saved = out;

	out = open_memstream(&text, &n);
	simple(s);
	fclose(out);
	out = saved;
	return n ? fmemopen(text, n, "r") : fmemopen("\n", 1, "r");
}

/* eval runs a line: lists with ; && || and |, and while LIST; do LIST; done. */
static int eval(char *line)
{
	int rc = 0, go = 1;

	while (*line == ' ')
		line++;
	if (!strncmp(line, "while ", 6)) {
		char *body = strstr(line, "; do "), *done = strstr(line, "; done");
		if (!body || !done) {
			fprintf(err, "sh: while without do and done\n");
			return 2;
		}
		for (;;) {
			char *cond = strndup(line + 6, (size_t)(body - line - 6)), *list = strndup(body + 5, (size_t)(done - body - 5));
			int stop = eval(cond);
			if (!stop)
				rc = eval(list);
			free(cond);
			free(list);
			if (stop)
				return rc;
		}
	}
	FILE *stdin_of_line = in;
	while (*line) {
		char *end = operator(line), *one = strndup(line, (size_t)(end - line));
		int twice = *end && end[1] == *end && *end != ';', pipe = *end == '|' && !twice;
		FILE *next = NULL;
		if (go && pipe)
			next = piped(one);
		else if (go)
			rc = simple(one);
		free(one);
		in = next ? next : stdin_of_line;
		if (!pipe)
			go = !twice ? 1 : *end == '&' ? rc == 0 : rc != 0;
		line = *end ? end + 1 + twice : end;
	}
	return rc;
}

static int do_sh(int argc, char **argv)
{
	char *line = NULL;
	size_t size = 0;
	int rc = 0;

	if (argc > 2 && !strcmp(argv[1], "-c")) {
		line = strdup(argv[2]);
		rc = eval(line);
		free(line);
		return rc;
	}
	while (getline(&line, &size, in) > 0) {
		line[strcspn(line, "\n")] = 0;
		rc = eval(line);
		fflush(NULL);
	}
	return rc;
}

int main(int argc, char **argv)
{
	in = stdin;
	out = stdout;
	err = stderr;
	int rc = run(argc, argv);
	return fflush(NULL) ? 1 : rc;
}
