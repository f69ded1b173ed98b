/* Frames of a pattern: what is sent, and who sends it to whom. Knows no port and no switch. */
#ifndef FRAMES_H
#define FRAMES_H

#include <stdint.h>

#define FLOWS_MAX 8191

/* The bytes that differ from frame to frame; the rest of a frame is whatever its buffer held. */
#define HEADER_BYTES 64

enum kind { STREAM, PING_PONG };

struct pattern {
    const char *name;
    enum kind kind;
    /* Without the four bytes of check sequence, which no virtual wire carries. */
    uint16_t frame_bytes;
    uint8_t ways;
    uint16_t flows;
    /* MAC addresses on each of the two ports. */
    uint16_t addresses;
};

enum side { LEFT, RIGHT };

/* Headers of all flows, from left to right and from right to left. */
struct headers {
    _Alignas(64) uint8_t bytes[2][FLOWS_MAX][HEADER_BYTES];
};

const struct pattern *pattern_named(const char *name);
void pattern_headers(const struct pattern *pattern, struct headers *headers);

/* The header of a frame by which the switch learns one address of `from`. */
void greeting(const struct pattern *pattern, enum side from, uint16_t address, uint8_t *header);

#endif
