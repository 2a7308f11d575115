/* Loads and unloads libraries. Reads commands from standard input and answers each with one line.
 *
 *   open PATH     the number of what was loaded
 *   close NUMBER  whether it is gone then
 *   call NUMBER   what its function `answer` gives
 */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static void *libraries[8];

int main(void) {
    char command[4096], path[4096];
    int count = 0, number;
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(command, sizeof command, stdin)) {
        command[strcspn(command, "\n")] = 0;
        if (sscanf(command, "open %4095[^\n]", path) == 1) {
            libraries[count] = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (libraries[count]) printf("%d\n", count++);
            else printf("%s\n", dlerror());
        } else if (sscanf(command, "close %d", &number) == 1) {
            dlclose(libraries[number]);
            printf("%d\n", dlopen(path, RTLD_LAZY | RTLD_NOLOAD) == NULL);
        } else if (sscanf(command, "call %d", &number) == 1) {
            int (*answer)(int) = (int (*)(int))dlsym(libraries[number], "answer");
            printf("%d\n", answer(1));
        }
    }
    return 0;
}
