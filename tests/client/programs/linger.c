/* Runs for a moment without any command, or forever with an argument, and ends with status 7. */
#include <unistd.h>

int main(int argc, char **argv) {
    (void)argv;
    while (argc > 1) pause();
    return write(1, "done\n", 5) == 5 ? 7 : 1;
}
