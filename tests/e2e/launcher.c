/* Loads a library with an app in it, calls the app once for each line it reads, and prints what it returns.
   A line "PATH ANCHOR COUNT FROM TO ..." loads a patch first, and has each FROM jump to its TO. */

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static void lead(uint64_t from, uint64_t to) {
    unsigned char jump[14] = {0xff, 0x25}; /* jmp *0(%rip), and the address behind it */
    memcpy(jump + 6, &to, sizeof to);
    void *page = (void *)(from & ~4095ull);
    mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC);
    memcpy((void *)from, jump, sizeof jump);
    mprotect(page, 8192, PROT_READ | PROT_EXEC);
}

int main(int argc, char **argv) {
    void *app = dlopen(argv[argc - 1], RTLD_NOW | RTLD_LOCAL);
    uint64_t (*app_main)(void) = (uint64_t (*)(void))dlsym(app, "app_main");
    printf("%llu\n", (unsigned long long)(uintptr_t)app_main);
    fflush(stdout);
    char line[4096];
    while (fgets(line, sizeof line, stdin)) {
        char path[1024];
        unsigned long long anchor, from, to;
        int count, at;
        if (sscanf(line, "%1023s %llu %d%n", path, &anchor, &count, &at) == 3) {
            void *patch = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (!patch) {
                puts(dlerror());
                return 1;
            }
            uint64_t slide = (uint64_t)(uintptr_t)dlsym(patch, "hotpatchd_anchor") - anchor;
            for (const char *rest = line + at; count-- && sscanf(rest, "%llu %llu%n", &from, &to, &at) == 2; rest += at)
                lead(from, to + slide);
        }
        printf("%llu\n", (unsigned long long)app_main());
        fflush(stdout);
    }
    return 0;
}
