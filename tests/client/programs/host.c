/* A program to be patched. Reads commands from standard input and answers each with one line.
 *
 *   host THREADS    THREADS threads call answer(1) all the time
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <linux/filter.h>
#include <linux/seccomp.h>
#endif

static atomic_long wrong;
static atomic_long calls;
static int pipe_ends[2];

/* Called anew each time: the compiler must not know that it always answers the same. */
__attribute__((noipa, aligned(16))) int answer(int n) { return n + 1; }

__attribute__((noinline, aligned(16))) int doubled(int n) { return n * 2; }

#ifdef __x86_64__
/* Calls within its first five bytes: a thread that waits in the callee returns to the middle of them. */
__asm__(".text\n.balign 16\n.globl early_call\n.type early_call,@function\nearly_call:\n"
        ".cfi_startproc\npush %rax\n.cfi_def_cfa_offset 16\ncall *%rdi\npop %rax\n.cfi_def_cfa_offset 8\n"
        "ret\nnop\nnop\nnop\n.cfi_endproc\n.size early_call, .-early_call\n");
void early_call(void (*function)(void));
#endif

/* Right answers never go down: patches are applied in order. */
static void *busy(void *unused) {
    (void)unused;
    int last = 0;
    for (;;) {
        int got = answer(1);
        if (got < last || got % 1000 != 2) atomic_fetch_add(&wrong, 1);
        last = got;
        atomic_fetch_add(&calls, 1);
    }
}

/* Calls answer(1) each time that it is asked to. */
static struct worker { sem_t asked, answered; int answer; } workers[4];

static void *work(void *argument) {
    struct worker *worker = argument;
    for (;;) {
        while (sem_wait(&worker->asked)) {}
        worker->answer = answer(1);
        sem_post(&worker->answered);
    }
}

static void *brief(void *unused) {
    int got = answer(1);
    if (got % 1000 != 2) atomic_fetch_add(&wrong, 1);
    atomic_fetch_add(&calls, 1);
    return unused;
}

/* Starts threads that call answer(1) once, one after the other. */
static void *spawner(void *unused) {
    for (;;) {
        pthread_t thread;
        pthread_create(&thread, NULL, brief, NULL);
        pthread_join(thread, NULL);
    }
    return unused;
}

__attribute__((noinline, aligned(16))) void *wait_for_byte(void *unused) {
    char byte;
    while (read(pipe_ends[0], &byte, 1) < 1) {}
    return unused;
}

#ifdef __GLIBC__
/* Takes libc's place: what a thread that is held allocates has to wait. libc allocates when it starts a thread. */
static __thread int held;
void *__libc_calloc(size_t count, size_t size);
void *calloc(size_t count, size_t size) {
    if (held) wait_for_byte(NULL);
    return __libc_calloc(count, size);
}

static void *held_starter(void *unused) {
    pthread_t thread;
    held = 1;
    pthread_create(&thread, NULL, brief, NULL);
    return unused;
}

#endif

#ifdef __x86_64__
static void wait_in_callee(void) { wait_for_byte(NULL); }
static void *early_caller(void *unused) { early_call(wait_in_callee); return unused; }
#endif

static void *masked(void *raw) {
    sigset_t all;
    sigfillset(&all);
    if (raw) {
        unsigned long every_bit = ~0ul;
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, &every_bit, NULL, sizeof every_bit);
    } else {
        pthread_sigmask(SIG_SETMASK, &all, NULL);
    }
    wait_for_byte(NULL);
    sigemptyset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL); /* what is pending comes now */
    return NULL;
}

static void start_named(const char *name, void *(*body)(void *), void *argument) {
    pthread_t thread;
    pthread_create(&thread, NULL, body, argument);
    pthread_setname_np(thread, name);
}

#ifdef __GLIBC__
/* From now on no thread may use pwrite64, as on kernels that guard /proc/self/mem. */
static int forbid_pwrite(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwrite64, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
}
#endif

struct jit_entry { struct jit_entry *next, *previous; const void *symfile_addr; unsigned long symfile_size; };
struct jit_descriptor { unsigned version, action; struct jit_entry *relevant, *first; };

static int print_module(struct dl_phdr_info *info, size_t size, void *unused) {
    (void)size, (void)unused;
    if (strstr(info->dlpi_name, "slot-")) printf("%s ", info->dlpi_name);
    return 0;
}

__attribute__((noinline, aligned(16))) int serve(void) {
    char command[256];
    while (fgets(command, sizeof command, stdin)) {
        command[strcspn(command, "\n")] = 0;
        if (!strcmp(command, "answer")) {
            printf("%d\n", answer(1));
        } else if (!strcmp(command, "bytes")) {
            for (int i = 0; i < 16; i++) printf("%02x", ((unsigned char *)answer)[i]);
            for (int i = 0; i < 16; i++) printf("%02x", ((unsigned char *)doubled)[i]);
            puts("");
        } else if (!strcmp(command, "wrong")) {
            printf("%ld\n", atomic_load(&wrong));
        } else if (!strcmp(command, "progress")) {
            long before = atomic_load(&calls);
            while (atomic_load(&calls) < before + 1000) {}
            puts("1");
        } else if (!strncmp(command, "start worker ", 13)) {
            struct worker *worker = &workers[atoi(command + 13)];
            sem_init(&worker->asked, 0, 0);
            sem_init(&worker->answered, 0, 0);
            start_named("worker", work, worker);
            puts("1");
        } else if (!strncmp(command, "ask worker ", 11)) {
            struct worker *worker = &workers[atoi(command + 11)];
            sem_post(&worker->asked);
            while (sem_wait(&worker->answered)) {}
            printf("%d\n", worker->answer);
        } else if (!strcmp(command, "spawner")) {
            start_named("spawner", spawner, NULL);
            puts("1");
#ifdef __GLIBC__
        } else if (!strcmp(command, "held starter")) {
            start_named("held", held_starter, NULL);
            puts("1");
        } else if (!strcmp(command, "forbid pwrite")) {
            printf("%d\n", forbid_pwrite());
#endif
        } else if (!strncmp(command, "load ", 5)) {
            printf("%d\n", dlopen(command + 5, RTLD_NOW) != NULL);
        } else if (!strcmp(command, "waiter")) {
            start_named("waiter", wait_for_byte, NULL);
            puts("1");
#ifdef __x86_64__
        } else if (!strcmp(command, "early caller")) {
            start_named("early", early_caller, NULL);
            puts("1");
#endif
        } else if (!strcmp(command, "masked")) {
            start_named("masked", masked, NULL);
            puts("1");
        } else if (!strcmp(command, "masked raw")) {
            start_named("masked-raw", masked, "raw");
            puts("1");
        } else if (!strcmp(command, "free")) {
            printf("%zd\n", write(pipe_ends[1], "x", 1));
        } else if (!strcmp(command, "close all")) {
            int closed = 0;
            for (int fd = 3; fd < 1024; fd++) closed += fd != pipe_ends[0] && fd != pipe_ends[1] && close(fd) == 0;
            printf("%d\n", closed);
        } else if (!strcmp(command, "fork")) {
            fflush(stdout);
            pid_t child = fork();
            if (child == 0) _exit(answer(1) % 256);
            int status;
            waitpid(child, &status, 0);
            printf("%d\n", WEXITSTATUS(status));
        } else if (!strcmp(command, "exec")) {
            printf("%d\n", system("exec true"));
        } else if (!strcmp(command, "modules")) {
            dl_iterate_phdr(print_module, NULL);
            puts("");
        } else if (!strcmp(command, "jit")) {
            struct jit_descriptor *descriptor = dlsym(RTLD_DEFAULT, "__jit_debug_descriptor");
            struct jit_entry *entry = descriptor->first;
            printf("%lu %08x\n", entry->symfile_size, __builtin_bswap32(*(unsigned *)entry->symfile_addr));
        } else if (!strcmp(command, "handler")) {
            struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } action;
            syscall(SYS_rt_sigaction, 32, NULL, &action, 8);
            printf("%p\n", action.handler);
        }
        fflush(stdout);
    }
    return 0;
}

int main(int argc, char **argv) {
    pipe(pipe_ends);
    for (int i = 0; i < (argc > 1 ? atoi(argv[1]) : 0); i++) start_named("busy", busy, NULL);
    return serve();
}
