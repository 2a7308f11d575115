/* Calls answer(1) for each line that it reads, with a signal handler of its own where it is asked for one.
 *
 *   crashes         no handler
 *   crashes leave   a handler for SIGSEGV that prints and ends the program with status 7
 *   crashes exit    as `leave`, by way of what is to be done at the end
 *   crashes skip    a handler for SIGSEGV that goes on behind the call that failed
 *   crashes abort   a handler for SIGSEGV that calls abort
 *   crashes stack   no handler, but a signal stack of the smallest size
 */
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static sigjmp_buf behind;

__attribute__((noinline, aligned(16))) int answer(int n) { return n + 1; }

__attribute__((aligned(16))) void call_abort(void) { abort(); }

void raise_bus_error(void) { raise(SIGBUS); }

static void leave(int number, siginfo_t *info, void *context) {
    (void)context;
    printf("handled %d at %p\n", number, info->si_addr);
    fflush(stdout);
    _exit(7);
}

static void end(int number) {
    exit(number);
}

static void skip(int number) {
    (void)number;
    siglongjmp(behind, 1);
}

static void give_up(int number) {
    (void)number;
    abort();
}

int main(int argc, char **argv) {
    struct sigaction action = {0};
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "leave")) {
        action.sa_sigaction = leave;
        action.sa_flags = SA_SIGINFO;
    } else if (!strcmp(mode, "exit")) {
        action.sa_handler = end;
    } else if (!strcmp(mode, "skip")) {
        action.sa_handler = skip;
    } else if (!strcmp(mode, "abort")) {
        action.sa_handler = give_up;
    } else if (!strcmp(mode, "stack")) {
        static char room[8192];
        stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
        sigaltstack(&stack, NULL);
    }
    if (action.sa_handler) sigaction(SIGSEGV, &action, NULL);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (sigsetjmp(behind, 1)) printf("skipped\n");
        else printf("%d\n", answer(1));
        fflush(stdout);
    }
}
