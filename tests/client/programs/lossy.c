/* Preloaded before the client, it loses what the client writes: with LOSE=detours every second jump, with LOSE=segments a
 * byte of the first patch, once.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int loses(const char *what) {
    const char *asked = getenv("LOSE");
    return asked && !strcmp(asked, what);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset) {
    static int jumps;
    int is_jump = size == 5 && *(const unsigned char *)bytes == 0xe9;
    if (is_jump && loses("detours") && ++jumps % 2 == 0) return (ssize_t)size;
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    return real(fd, bytes, size, offset);
}

int mprotect(void *start, size_t size, int protection) {
    static int made_executable;
    int (*real)(void *, size_t, int) = dlsym(RTLD_NEXT, "mprotect");
    /* The first one is the client's own trial. */
    if (protection == (PROT_READ | PROT_EXEC) && loses("segments") && ++made_executable == 2) *(char *)start ^= 1;
    return real(start, size, protection);
}
