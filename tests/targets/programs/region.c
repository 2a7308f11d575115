// A program into which a test puts a linked image, where the client would: `region PLAN`, one step a line:
//   segment ADDR MEM_SIZE FILE_SIZE OFFSET PROT PATH
//   import SLOT NAME
//   call ADDR NUMBER | text ADDR TEXT        prints what the function returns
//   address NAME                             prints where a function of libc is, or a thread-local of the program
//   calls                                    prints the static
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096L

int calls = 40;
int table[4];
int host_counter;
__thread int host_early = 5;
__thread int host_local = 6;

int host_function(int n) { return n + 100; }
int own(int n) { return n + 100; }

static void *address(const char *name) {
    if (!strcmp(name, "local")) return &host_local;
    if (!strcmp(name, "early")) return &host_early;
    return dlsym(RTLD_DEFAULT, name);
}

static void segment(char *addr, long mem, long size, long offset, const char *prot, const char *path) {
    long mapped = (mem + PAGE - 1) & -PAGE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    if (mmap(addr, mapped, PROT_READ | PROT_WRITE, flags, -1, 0) != addr) exit(3);
    FILE *file = fopen(path, "rb");
    if (fseek(file, offset, SEEK_SET) || fread(addr, 1, size, file) != (size_t)size) exit(4);
    fclose(file);
    __builtin___clear_cache(addr, addr + mapped);
    if (!strcmp(prot, "rx")) mprotect(addr, mapped, PROT_READ | PROT_EXEC);
}

int main(int argc, char **argv) {
    FILE *plan = fopen(argv[argc - 1], "r");
    char step[16], word[4096], prot[4];
    unsigned long addr, mem, size, offset;
    while (fscanf(plan, "%15s", step) == 1) {
        if (!strcmp(step, "segment")) {
            if (fscanf(plan, "%lu %lu %lu %lu %3s %4095s", &addr, &mem, &size, &offset, prot, word) != 6) return 2;
            segment((char *)addr, mem, size, offset, prot, word);
        } else if (!strcmp(step, "import")) {
            if (fscanf(plan, "%lu %4095s", &addr, word) != 2) return 2;
            *(void **)addr = dlsym(RTLD_DEFAULT, word);
        } else if (!strcmp(step, "call")) {
            if (fscanf(plan, "%lu %lu", &addr, &size) != 2) return 2;
            printf("%lu\n", ((unsigned long (*)(int))addr)((int)size));
        } else if (!strcmp(step, "text")) {
            if (fscanf(plan, "%lu %4095s", &addr, word) != 2) return 2;
            printf("%lu\n", ((unsigned long (*)(const char *))addr)(word));
        } else if (!strcmp(step, "address")) {
            if (fscanf(plan, "%4095s", word) != 1) return 2;
            printf("%lu\n", (unsigned long)address(word));
        } else if (!strcmp(step, "calls")) {
            printf("%d\n", calls);
        }
    }
    return 0;
}
