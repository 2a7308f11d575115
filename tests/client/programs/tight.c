/* Functions without room for a long jump. Reads commands from standard input and answers each with one line. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* behind: its loop begins behind four bytes; second: behind one, which a short jump overwrites as well. */
asm(".text\n.p2align 4\n.globl behind\n.type behind, @function\nbehind:\n.cfi_startproc\nsub $8, %rsp\n"
    ".cfi_adjust_cfa_offset 8\n1: call turn\ntest %eax, %eax\njne 1b\nadd $8, %rsp\n.cfi_adjust_cfa_offset -8\nret\n"
    ".cfi_endproc\n.size behind, . - behind\n"
    ".p2align 4\n.globl second\n.type second, @function\nsecond:\n.cfi_startproc\npush %rax\n"
    ".cfi_adjust_cfa_offset 8\n1: call turn\ntest %eax, %eax\njne 1b\npop %rax\n.cfi_adjust_cfa_offset -8\nret\n"
    ".cfi_endproc\n.size second, . - second\n"
    ".p2align 4\n.globl zero\n.type zero, @function\nzero: xor %eax, %eax\nret\n.size zero, . - zero\n"
    ".globl nought\n.type nought, @function\nnought: xor %eax, %eax\nret\n.size nought, . - nought\n"
    ".globl five\n.type five, @function\nfive: mov $5, %eax\nret\n.size five, . - five\n"
    ".globl padding\n.type padding, @object\npadding: .skip 40, 0xcc\n.size padding, . - padding\n");
extern void behind(void), second(void);
extern int zero(void), nought(void), five(void);
extern const unsigned char padding[40];

int entered;
static atomic_long calls, wrong;
static atomic_long rounds;
static int lines[2];
static atomic_int spinning;

/* Whether to go on. */
int turn(void) {
    char byte = 0;
    if (atomic_load(&spinning)) {
        atomic_fetch_add(&rounds, 1);
        return 1;
    }
    while (read(lines[0], &byte, 1) < 0) {}
    atomic_fetch_add(&rounds, 1);
    return byte == 'g';
}

static void *busy(void *unused) {
    for (;;) {
        int got = zero();
        if (got != 0 && got != 1) atomic_fetch_add(&wrong, 1);
        atomic_fetch_add(&calls, 1);
    }
    return unused;
}

static void *loop(void *function) {
    ((void (*)(void))function)();
    return NULL;
}

static void start(void (*function)(void)) {
    pthread_t thread;
    pthread_create(&thread, NULL, loop, function);
    pthread_setname_np(thread, "looping");
}

int main(void) {
    char command[256];
    pipe(lines);
    while (fgets(command, sizeof command, stdin)) {
        command[strcspn(command, "\n")] = 0;
        if (!strcmp(command, "loop behind")) {
            start(behind);
            puts("1");
        } else if (!strcmp(command, "loop second")) {
            start(second);
            puts("1");
        } else if (!strcmp(command, "busy")) {
            pthread_t thread;
            printf("%d\n", pthread_create(&thread, NULL, busy, NULL));
        } else if (!strcmp(command, "wrong")) {
            long before = atomic_load(&calls);
            while (atomic_load(&calls) < before + 1000) {}
            printf("%ld\n", atomic_load(&wrong));
        } else if (!strcmp(command, "spin")) {
            atomic_store(&spinning, 1);
            start(second);
            puts("1");
        } else if (!strcmp(command, "enter") || !strcmp(command, "enter second")) {
            (command[5] ? second : behind)();
            printf("%d\n", entered);
        } else if (!strcmp(command, "numbers")) {
            printf("%d %d %d\n", zero(), nought(), five());
        } else if (!strcmp(command, "bytes")) {
            for (const unsigned char *byte = (const void *)behind; byte < padding + sizeof padding; byte++)
                printf("%02x", *byte);
            puts("");
        } else if (!strcmp(command, "rounds")) {
            printf("%ld\n", atomic_load(&rounds));
        } else { /* "go on" or "end" */
            printf("%zd\n", write(lines[1], command, 1));
        }
        fflush(stdout);
    }
    return 0;
}
