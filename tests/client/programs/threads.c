/* A program whose threads do what may be in the way of stopping them. Answers each command with one line.
 *
 *   threads KIND COUNT    COUNT threads named KIND call answer(1), and do what KIND says in between
 *
 * The signal USED, if it is in the environment, is one that the program uses itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A jump has room over a short function only if the next one does not follow at once. */
#pragma GCC optimize("align-functions=16")

extern char **environ;

static atomic_long wrong, interrupted, rounds;
static int pipe_ends[2], lines[2];
static atomic_int word;

__attribute__((noinline, aligned(16))) int answer(int n) { return n + 1; }

static void count(int failed) {
    if (failed && errno == EINTR) atomic_fetch_add(&interrupted, 1);
    else if (failed) atomic_fetch_add(&wrong, 1);
}

/* Each byte that comes lets one thread go on. */
static void wait_in_read(void) {
    char byte;
    count(read(pipe_ends[0], &byte, 1) < 0);
}

static void wait_in_epoll(void) {
    static __thread int epoll = -1;
    if (epoll < 0) epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event;
    count(epoll_wait(epoll, &event, 1, 50) < 0);
}

static void wait_in_futex(void) {
    int now = atomic_load(&word);
    if (syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, now, NULL) < 0 && errno != EAGAIN) count(1);
}

static void wait_in_nanosleep(void) {
    struct timespec time = {0, 20000000};
    count(nanosleep(&time, NULL) < 0);
}

static void allocate(void) {
    for (int i = 0; i < 1000; i++) {
        char *volatile pointer = malloc(100 + i * 400);
        free(pointer);
    }
}

static void spin(void) {
    for (volatile int i = 0; i < 100000; i++) {}
}

static void *end_at_once(void *argument) { return argument; }

static void start_thread(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, end_at_once, NULL)) atomic_fetch_add(&wrong, 1);
    else pthread_join(thread, NULL);
}

static void on_usr1(int number) {
    (void)number;
    if (answer(1) < 2) atomic_fetch_add(&wrong, 1);
    allocate();
}

__attribute__((noinline)) void handle(void) { for (int i = 0; i < 100; i++) raise(SIGUSR1); }

static void spawn(void) {
    char *argv[] = {"true", NULL};
    pid_t child;
    if (posix_spawn(&child, "/bin/true", NULL, NULL, argv, environ)) atomic_fetch_add(&wrong, 1);
    else while (waitpid(child, NULL, 0) < 0) count(1);
}

static void start_by_vfork(void) {
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    if (child < 0) atomic_fetch_add(&wrong, 1);
    else while (waitpid(child, NULL, 0) < 0) count(1);
}

static void fork_child(void) {
    int before = answer(1);
    pid_t child = fork();
    if (child == 0) _exit(answer(1) < before);
    int status = 0;
    if (child < 0) atomic_fetch_add(&wrong, 1);
    else while (waitpid(child, &status, 0) < 0) count(1);
    if (status) atomic_fetch_add(&wrong, 1);
}

static __thread volatile long heard;

static void on_used(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    if (info->si_value.sival_int == 77) heard++;
    else atomic_fetch_add(&wrong, 1);
}

/* Queues a signal to this thread, in the way of the client. The kernel delivers it before the call returns. */
static void queue(void) {
    long before = heard;
    union sigval value = {.sival_int = 77};
    if (pthread_sigqueue(pthread_self(), atoi(getenv("USED")), value)) count(1);
    if (heard != before + 1) atomic_fetch_add(&wrong, 1);
}

static const struct kind { const char *name; void (*act)(void); } kinds[] = {
    {"read", wait_in_read}, {"epoll", wait_in_epoll}, {"futex", wait_in_futex}, {"nanosleep", wait_in_nanosleep},
    {"malloc", allocate}, {"spin", spin}, {"handler", handle}, {"masked", allocate}, {"spawn", spawn}, {"vfork", start_by_vfork},
    {"fork", fork_child}, {"queue", queue}, {"start", start_thread}, {NULL, NULL},
};

/* Right answers never go down: patches are applied in order. */
static void *work(void *argument) {
    const struct kind *kind = argument;
    int last = 0;
    if (!strcmp(kind->name, "masked")) {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, NULL);
    }
    for (;;) {
        int got = answer(1);
        if (got < last) atomic_fetch_add(&wrong, 1);
        last = got;
        kind->act();
        atomic_fetch_add(&rounds, 1);
    }
    return NULL;
}

static void on_usr2(int number) {
    char byte;
    (void)number;
    while (read(lines[0], &byte, 1) < 0) {}
}

__attribute__((noinline, aligned(16))) void interrupt_itself(void) {
    raise(SIGUSR2);
    atomic_fetch_add(&rounds, 1);
}

static void *interrupt(void *unused) {
    interrupt_itself();
    return unused;
}

/* Blocks one signal in the kernel, as no function of libc does it for those that libc keeps. */
static void *block(void *signal) {
    unsigned long mask = 1ul << ((long)signal - 1);
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, &mask, NULL, sizeof mask);
    wait_in_read();
    return NULL;
}

/* Until it is told, the child keeps its parent's thread in the kernel. */
static void *wait_for_child(void *unused) {
    char byte;
    if (vfork() == 0) {
        read(lines[0], &byte, 1);
        _exit(0);
    }
    return unused;
}

/* A child holds a thread, as debuggers do, until it is told. */
static pid_t trace(pid_t tid) {
    char byte;
    pid_t child = fork();
    if (child == 0) {
        int held = ptrace(PTRACE_SEIZE, tid, 0, 0) == 0 && ptrace(PTRACE_INTERRUPT, tid, 0, 0) == 0;
        if (held) waitpid(tid, NULL, __WALL);
        write(lines[1], held ? "1" : "0", 1);
        read(pipe_ends[0], &byte, 1);
        _exit(0);
    }
    read(lines[0], &byte, 1);
    return byte == '1' ? child : -1;
}

static pid_t traced;

static void *be_traced(void *unused) {
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    traced = gettid();
    wait_in_read();
    return unused;
}

/* Whether to go on. */
int turn(void) {
    char byte = 0;
    while (read(lines[0], &byte, 1) < 0) {}
    atomic_fetch_add(&rounds, 1);
    return byte == 'g';
}

#ifdef __x86_64__
/* Its loop begins behind its first instruction, which is shorter than a jump. */
asm(".text\n.p2align 4\n.globl looping\n.type looping, @function\nlooping:\n.cfi_startproc\npush %rax\n"
    ".cfi_adjust_cfa_offset 8\n1: call turn\ntest %eax, %eax\njne 1b\npop %rax\n.cfi_adjust_cfa_offset -8\nret\n"
    ".cfi_endproc\n.size looping, . - looping");
extern void looping(void);

static void *loop(void *unused) {
    looping();
    return unused;
}
#endif

static void start(const char *name, void *(*body)(void *), void *argument) {
    pthread_t thread;
    pthread_create(&thread, NULL, body, argument);
    pthread_setname_np(thread, name);
}

static void start_all(const char *name, int count) {
    for (const struct kind *kind = kinds; kind->name; kind++)
        for (int i = 0; !strcmp(kind->name, name) && i < count; i++) start(name, work, (void *)kind);
}

/* A child that goes on answering, through two pipes. */
static void fork_server(void) {
    int question[2], reply[2];
    pipe(question);
    pipe(reply);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(question[1]); /* so that it ends with its parent */
        while (read(question[0], &byte, 1) == 1) {
            int got = answer(1);
            write(reply[1], &got, sizeof got);
        }
        _exit(0);
    }
    lines[0] = reply[0];
    lines[1] = question[1];
    printf("%d\n", child);
}

static int ask_child(void) {
    int got = -1;
    write(lines[1], "?", 1);
    read(lines[0], &got, sizeof got);
    return got;
}

int main(int argc, char **argv) {
    char command[256];
    pipe(pipe_ends);
    struct sigaction action = {.sa_handler = on_usr1};
    sigfillset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    if (getenv("USED")) {
        struct sigaction used = {.sa_sigaction = on_used, .sa_flags = SA_SIGINFO | SA_RESTART};
        sigaction(atoi(getenv("USED")), &used, NULL);
    }
    if (argc > 2) start_all(argv[1], atoi(argv[2]));
    while (fgets(command, sizeof command, stdin)) {
        command[strcspn(command, "\n")] = 0;
        if (!strcmp(command, "answer")) printf("%d\n", answer(1));
        else if (!strcmp(command, "wrong")) printf("%ld\n", atomic_load(&wrong));
        else if (!strcmp(command, "interrupted")) printf("%ld\n", atomic_load(&interrupted));
        else if (!strcmp(command, "progress")) {
            long before = atomic_load(&rounds);
            while (atomic_load(&rounds) == before) {
                write(pipe_ends[1], "x", 1);
                atomic_fetch_add(&word, 1);
                syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1 << 20, NULL);
                usleep(1000);
            }
            puts("1");
        } else if (!strcmp(command, "interrupt")) {
            struct sigaction action = {.sa_handler = on_usr2};
            pipe(lines);
            sigaction(SIGUSR2, &action, NULL);
            start("interrupted", interrupt, NULL);
            puts("1");
        } else if (!strncmp(command, "start ", 6)) {
            char *count = strrchr(command, ' ');
            *count = 0;
            start_all(command + 6, atoi(count + 1));
            puts("1");
        } else if (!strncmp(command, "block ", 6)) {
            start("blocking", block, (void *)atol(command + 6));
            puts("1");
        } else if (!strcmp(command, "vfork")) {
            pipe(lines);
            start("forking", wait_for_child, NULL);
            puts("1");
        } else if (!strcmp(command, "trace")) {
            pipe(lines);
            start("traced", be_traced, NULL);
            while (!traced) usleep(1000);
            printf("%d\n", trace(traced));
#ifdef __x86_64__
        } else if (!strcmp(command, "loop")) {
            pipe(lines);
            start("looping", loop, NULL);
            puts("1");
#endif
        } else if (!strcmp(command, "go on") || !strcmp(command, "end")) {
            long before = atomic_load(&rounds);
            write(lines[1], command, 1);
            printf("%ld\n", before);
        } else if (!strcmp(command, "rounds")) printf("%ld\n", atomic_load(&rounds));
        else if (!strcmp(command, "let go")) puts(write(pipe_ends[1], "xx", 2) == 2 ? "1" : "0");
        else if (!strcmp(command, "fork")) fork_server();
        else if (!strcmp(command, "ask child")) printf("%d\n", ask_child());
        fflush(stdout);
    }
    return 0;
}
