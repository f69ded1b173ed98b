/* Slices: one switch runs for a while under one pattern, all others are stopped. */
#ifndef SLICES_H
#define SLICES_H

#include <sys/types.h>

#include "frames.h"

struct contender {
    const char *name;
    pid_t pid;
    uint16_t ports[2];
};

/* Lets the switch learn the pattern's addresses, and sees that what it forwards arrives unchanged. */
void acquaint(const struct contender *contender, const struct pattern *pattern);

/* Runs one slice and prints its line. */
void slice(const struct contender *contender, const struct pattern *pattern, const struct headers *headers,
           unsigned int round, unsigned int milliseconds);

void resume(const struct contender *contender);
void halt(const struct contender *contender);

#endif
