/* leash.c - runs a command on one core and ties its life to the process that started it.
 *
 *   leash CORE COMMAND [ARGUMENT ...]
 *
 * The command replaces this program, so its process id is the one the caller knows and the time of the exec counts as
 * the command's own start. When the starting thread dies without saying goodbye, the kernel sends SIGTERM: no server
 * of an interrupted benchmark outlives it. CORE -1 leaves the affinity alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: leash CORE COMMAND [ARGUMENT ...]\n");
        return 64;
    }
    int core = atoi(argv[1]);
    if (core >= 0) {
        cpu_set_t cores;
        CPU_ZERO(&cores);
        CPU_SET((size_t)core, &cores);
        if (sched_setaffinity(0, sizeof cores, &cores) != 0) {
            fprintf(stderr, "leash: core %d: %s\n", core, strerror(errno));
            return 71;
        }
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    execvp(argv[2], argv + 2);
    fprintf(stderr, "leash: %s: %s\n", argv[2], strerror(errno));
    return 127;
}
