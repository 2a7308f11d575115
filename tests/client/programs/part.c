/* A library that is to be patched. */
int help(int n);

static int calls;

__attribute__((noinline, aligned(16))) static int counted(int n) { return help(n) + ++calls; }

__attribute__((noinline, aligned(16))) int answer(int n) { return counted(n); }
