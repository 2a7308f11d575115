/* Prints, for each line on standard input, the time of one call of a function of two instructions, in picoseconds.
 *
 *   hot THREADS    that many threads call it at once
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CALLS = 2000000, MOST_THREADS = 64 };

__attribute__((noipa, aligned(16))) long answer(long n) { return n + 1; }

static void *call(void *unused) {
    for (long i = 0; i < CALLS; i++) answer(i);
    return unused;
}

static double now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e9 + now.tv_nsec;
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 1;
    char line[16];
    pthread_t threads[MOST_THREADS];
    while (fgets(line, sizeof line, stdin)) {
        double begun = now_ns();
        for (int i = 1; i < count; i++) pthread_create(&threads[i], NULL, call, NULL);
        call(NULL);
        for (int i = 1; i < count; i++) pthread_join(threads[i], NULL);
        printf("%.0f\n", (now_ns() - begun) / CALLS * 1000);
        fflush(stdout);
    }
}
