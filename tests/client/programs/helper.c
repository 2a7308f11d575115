/* What only those who were linked with it find. */
int help(int n) { return n * 10; }

int help_more(int n) { return n * 100; }
