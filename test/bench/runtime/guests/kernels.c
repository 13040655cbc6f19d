/*
 * Programs that only compute, each timed by itself: "NAME NANOSECONDS RESULT"
 * a line, the best of the rounds that the first argument says (5). Built for
 * WASI and for this machine by the same compiler with the same flags.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

#define ROTR(x, n) ((x) >> (n) | (x) << (32 - (n)))

static void sha256_block(uint32_t h[8], const uint8_t *p) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = ROTR(w[i - 15], 7) ^ ROTR(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t b = ROTR(w[i - 2], 17) ^ ROTR(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(s, h, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = s[7] + (ROTR(s[4], 6) ^ ROTR(s[4], 11) ^ ROTR(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
        uint32_t t2 = (ROTR(s[0], 2) ^ ROTR(s[0], 13) ^ ROTR(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        h[i] += s[i];
}

static uint64_t sha256(void) { /* of 4 MiB */
    static uint8_t data[1 << 16];
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 31);
    for (int round = 0; round < 64; round++)
        for (size_t at = 0; at < sizeof data; at += 64)
            sha256_block(h, data + at);
    return (uint64_t)h[0] << 32 | h[7];
}

#define N 256
static double a[N][N], b[N][N], c[N][N];

static uint64_t matmul(void) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            a[i][j] = i + j, b[i][j] = i - j, c[i][j] = 0;
    for (int i = 0; i < N; i++)
        for (int k = 0; k < N; k++)
            for (int j = 0; j < N; j++)
                c[i][j] += a[i][k] * b[k][j];
    return (uint64_t)(int64_t)c[N - 1][N / 2];
}

static uint64_t sieve(void) {
    static uint8_t composite[1 << 21];
    memset(composite, 0, sizeof composite);
    uint64_t count = 0;
    for (size_t i = 2; i < sizeof composite; i++) {
        if (composite[i])
            continue;
        count++;
        if (i > 1 << 11) /* its square is past the end, and may be past size_t's */
            continue;
        for (size_t j = i * i; j < sizeof composite; j += i)
            composite[j] = 1;
    }
    return count;
}

static int less(const void *x, const void *y) {
    uint32_t p = *(const uint32_t *)x, q = *(const uint32_t *)y;
    return (p > q) - (p < q);
}

static uint64_t sort(void) { /* calls by pointer */
    static uint32_t v[1 << 17];
    uint32_t seed = 1;
    for (size_t i = 0; i < sizeof v / sizeof *v; i++)
        v[i] = seed = seed * 1664525 + 1013904223;
    qsort(v, sizeof v / sizeof *v, sizeof *v, less);
    return v[1000];
}

static int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static uint64_t calls(void) { return (uint64_t)fib(30); }

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        uint64_t (*run)(void);
    } kernels[] = {{"sha256", sha256}, {"matmul", matmul}, {"sieve", sieve}, {"sort", sort}, {"calls", calls}};
    int rounds = argc > 1 ? atoi(argv[1]) : 5;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        uint64_t best = UINT64_MAX, result = 0;
        for (int r = 0; r < rounds; r++) {
            uint64_t begin = now();
            result = kernels[i].run();
            uint64_t took = now() - begin;
            if (took < best)
                best = took;
        }
        printf("%s %llu %llx\n", kernels[i].name, (unsigned long long)best, (unsigned long long)result);
        fflush(stdout);
    }
    return 0;
}
