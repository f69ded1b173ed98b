/* Traffic through virtual switches, one after another in short slices, for `cargo xtask bench vswitch`.
 *
 * traffic slices ROUNDS MILLISECONDS PATTERN[,PATTERN…] NAME=PID:SOCKET:SOCKET …
 *     Each NAME is a switch that runs as process PID and serves two vhost-user sockets, left and right. In each round
 *     each switch in turn gets a slice while the others are stopped by SIGSTOP; a line on standard output tells what
 *     it did. So what the machine does to one it does to the next, and the ratio within a round is fair.
 *
 * traffic idle SOCKET…
 *     Opens the sockets as guests that say nothing, prints 'ready', and ends when standard input does.
 *
 * The program runs on the first processor, and says on standard error what failed. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_debug.h>
#include <rte_eal.h>

#include "frames.h"
#include "ports.h"
#include "slices.h"

#define CONTENDERS_MAX 8
#define PATTERNS_MAX 8

static const char USAGE[] = "usage: traffic slices ROUNDS MILLISECONDS PATTERN[,PATTERN…] NAME=PID:SOCKET:SOCKET …\n"
                            "       traffic idle SOCKET…\n";

static void fail_usage(void)
{
    fputs(USAGE, stderr);
    exit(2);
}

struct sockets {
    const char *ends[2];
};

static struct contender parse_contender(char *word, struct sockets *sockets)
{
    char *name = strsep(&word, "="), *pid = strsep(&word, ":"), *left = strsep(&word, ":"), *right = word;
    if (right == NULL || atoi(pid) <= 1)
        fail_usage();
    *sockets = (struct sockets){{left, right}};
    return (struct contender){name, atoi(pid), {0, 0}};
}

/* Connects to all switches, of which only one runs at a time from here on. */
static void connect_all(struct contender *contenders, const struct sockets *sockets, int count)
{
    for (int i = 0; i < count; i++)
        halt(&contenders[i]);
    for (int i = 0; i < count; i++) {
        resume(&contenders[i]);
        for (int side = LEFT; side <= RIGHT; side++)
            contenders[i].ports[side] = port_open(sockets[i].ends[side]);
        halt(&contenders[i]);
    }
}

static int parse_patterns(char *words, const struct pattern **patterns)
{
    int count = 0;
    for (char *name; (name = strsep(&words, ",")) != NULL; count++) {
        if (count == PATTERNS_MAX || (patterns[count] = pattern_named(name)) == NULL)
            rte_exit(EXIT_FAILURE, "there is no pattern '%s'\n", name);
    }
    return count;
}

static void run_pattern(const struct pattern *pattern, const struct contender *contenders, int count,
                        unsigned int rounds, unsigned int milliseconds)
{
    static struct headers headers;
    pattern_headers(pattern, &headers);
    for (int i = 0; i < count; i++) {
        resume(&contenders[i]);
        acquaint(&contenders[i], pattern);
        halt(&contenders[i]);
    }
    for (unsigned int round = 0; round < rounds; round++) {
        for (int i = 0; i < count; i++)
            slice(&contenders[i], pattern, &headers, round, milliseconds);
    }
}

static void run_slices(int count, char **words)
{
    struct contender contenders[CONTENDERS_MAX];
    struct sockets sockets[CONTENDERS_MAX];
    const struct pattern *patterns[PATTERNS_MAX];
    unsigned int rounds = atoi(words[0]), milliseconds = atoi(words[1]);
    int pattern_count = parse_patterns(words[2], patterns), contender_count = count - 3;

    if (rounds == 0 || milliseconds == 0 || contender_count > CONTENDERS_MAX)
        fail_usage();
    for (int i = 0; i < contender_count; i++)
        contenders[i] = parse_contender(words[3 + i], &sockets[i]);
    connect_all(contenders, sockets, contender_count);
    printf("clock hz=%lu\n", rte_get_tsc_hz());
    for (int i = 0; i < pattern_count; i++)
        run_pattern(patterns[i], contenders, contender_count, rounds, milliseconds);
    for (int i = 0; i < contender_count; i++)
        resume(&contenders[i]);
}

static void run_idle(int count, char **sockets)
{
    for (int i = 0; i < count; i++)
        port_open(sockets[i]);
    puts("ready");
    fflush(stdout);
    while (getchar() != EOF)
        continue;
}

int main(int count, char **words)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count >= 6 && strcmp(words[1], "slices") == 0) {
        ports_begin(words[0]);
        run_slices(count - 2, words + 2);
    } else if (count >= 3 && strcmp(words[1], "idle") == 0) {
        ports_begin(words[0]);
        run_idle(count - 2, words + 2);
    } else {
        fail_usage();
    }
    /* The ports go with the process: a switch sees the connection end, as when a guest is killed. */
    return EXIT_SUCCESS;
}
