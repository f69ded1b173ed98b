/* What happens within a slice. The clock is the processor's time stamp counter; the loop allocates nothing but buffers. */

#include "slices.h"

#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/perf_event.h>
#include <sys/syscall.h>

#include <rte_cycles.h>
#include <rte_ethdev.h>
#include <rte_memcpy.h>

#include "ports.h"

#define WARM_UP_MS 3
#define ANSWER_S 20
#define TRIPS_MAX 200000
/* Of one switch. */
#define FORWARDERS_MAX 256
/* A loop that took longer was not running: something else had the processor. */
#define HELD_UP_US 50

struct tally {
    uint64_t sent, received, offered, cycles, held_up;
    /* For how long the switch's forwarding threads wanted to run and could not. */
    uint64_t waited_ns;
    /* What these threads used of the processor, by its own counters; 0 where it has none that can be read. */
    uint64_t used;
};

static uint64_t milliseconds_in_cycles(unsigned int milliseconds)
{
    return rte_get_tsc_hz() / 1000 * milliseconds;
}

void resume(const struct contender *contender)
{
    kill(contender->pid, SIGCONT);
}

void halt(const struct contender *contender)
{
    kill(contender->pid, SIGSTOP);
}

/* The threads of a switch that run ahead of others. */
static int forwarders(const struct contender *contender, pid_t *threads)
{
    char path[64];
    struct dirent *task;
    int count = 0;

    snprintf(path, sizeof(path), "/proc/%d/task", contender->pid);
    DIR *tasks = opendir(path);
    while (tasks != NULL && count < FORWARDERS_MAX && (task = readdir(tasks)) != NULL) {
        pid_t thread = atoi(task->d_name);
        if (thread != 0 && sched_getscheduler(thread) == SCHED_RR)
            threads[count++] = thread;
    }
    if (tasks != NULL)
        closedir(tasks);
    return count;
}

/* How long a switch's forwarding threads have waited for a processor so far. Even they wait when the kernel gives others
 * their least share, and such a slice tells nothing about the switch. */
static uint64_t waited_ns(const struct contender *contender)
{
    char path[64];
    uint64_t sum = 0;
    pid_t threads[FORWARDERS_MAX];
    int count = forwarders(contender, threads);

    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", contender->pid, threads[i]);
        FILE *file = fopen(path, "r");
        unsigned long ran, waited;
        if (file != NULL && fscanf(file, "%lu %lu", &ran, &waited) == 2)
            sum += waited;
        if (file != NULL)
            fclose(file);
    }
    return sum;
}

/* The processor's counters of the cycles that a switch's forwarding threads use. */
struct meters {
    int descriptors[FORWARDERS_MAX];
    int count;
    bool is_whole;
};

static struct meters meters_open(const struct contender *contender)
{
    struct perf_event_attr cycles = {
        .type = PERF_TYPE_HARDWARE, .size = sizeof(cycles), .config = PERF_COUNT_HW_CPU_CYCLES};
    pid_t threads[FORWARDERS_MAX];
    int count = forwarders(contender, threads);
    struct meters meters = {.is_whole = count > 0};

    for (int i = 0; i < count && meters.is_whole; i++) {
        int descriptor = syscall(SYS_perf_event_open, &cycles, threads[i], -1, -1, PERF_FLAG_FD_CLOEXEC);
        if (descriptor >= 0)
            meters.descriptors[meters.count++] = descriptor;
        else
            meters.is_whole = false;
    }
    return meters;
}

static uint64_t meters_read(const struct meters *meters)
{
    uint64_t sum = 0, used;
    for (int i = 0; i < meters->count && meters->is_whole; i++) {
        if (read(meters->descriptors[i], &used, sizeof(used)) == sizeof(used))
            sum += used;
    }
    return sum;
}

static void meters_close(const struct meters *meters)
{
    for (int i = 0; i < meters->count; i++)
        close(meters->descriptors[i]);
}

static uint16_t send_burst(const struct contender *contender, const struct pattern *pattern,
                           const struct headers *headers, enum side from)
{
    static uint16_t next_flow[2];
    struct rte_mbuf *frames[BURST];
    uint16_t flow = next_flow[from] % pattern->flows;

    if (rte_pktmbuf_alloc_bulk(port_buffers(), frames, BURST) != 0)
        rte_exit(EXIT_FAILURE, "out of buffers\n");
    for (int i = 0; i < BURST; i++) {
        rte_memcpy(rte_pktmbuf_mtod(frames[i], void *), headers->bytes[from][flow], HEADER_BYTES);
        frames[i]->data_len = pattern->frame_bytes;
        frames[i]->pkt_len = pattern->frame_bytes;
        flow = flow + 1 < pattern->flows ? flow + 1 : 0;
    }
    uint16_t sent = rte_eth_tx_burst(contender->ports[from], 0, frames, BURST);
    if (sent < BURST)
        rte_pktmbuf_free_bulk(&frames[sent], BURST - sent);
    next_flow[from] = (next_flow[from] + sent) % pattern->flows;
    return sent;
}

static uint16_t receive_burst(const struct contender *contender, const struct pattern *pattern, enum side at)
{
    struct rte_mbuf *frames[BURST];
    uint16_t count = rte_eth_rx_burst(contender->ports[at], 0, frames, BURST);
    uint32_t difference = 0;

    if (count == 0)
        return 0;
    for (int i = 0; i < count; i++)
        difference |= frames[i]->pkt_len ^ pattern->frame_bytes;
    if (difference != 0)
        rte_exit(EXIT_FAILURE, "%s: a frame came with another length\n", contender->name);
    rte_pktmbuf_free_bulk(frames, count);
    return count;
}

/* Takes what is still on its way, until nothing came for a millisecond. */
static void drain(const struct contender *contender)
{
    struct rte_mbuf *frames[BURST];
    uint64_t last = rte_rdtsc();

    while (rte_rdtsc() - last < milliseconds_in_cycles(1)) {
        for (int side = LEFT; side <= RIGHT; side++) {
            uint16_t count = rte_eth_rx_burst(contender->ports[side], 0, frames, BURST);
            if (count > 0) {
                rte_pktmbuf_free_bulk(frames, count);
                last = rte_rdtsc();
            }
        }
    }
}

static struct tally stream(const struct contender *contender, const struct pattern *pattern,
                           const struct headers *headers, uint64_t cycles)
{
    struct tally tally = {0};
    uint64_t begin = rte_rdtsc(), now = begin, bound = rte_get_tsc_hz() / 1000000 * HELD_UP_US;

    while (now - begin < cycles) {
        for (int from = LEFT; from < pattern->ways; from++) {
            tally.offered += BURST;
            tally.sent += send_burst(contender, pattern, headers, from);
            tally.received += receive_burst(contender, pattern, 1 - from);
        }
        uint64_t then = now;
        now = rte_rdtsc();
        if (now - then > bound)
            tally.held_up += now - then;
    }
    tally.cycles = now - begin;
    return tally;
}

static bool is_ours(const struct rte_mbuf *frame, const uint8_t *content, uint16_t bytes)
{
    return frame->pkt_len == bytes && frame->nb_segs == 1 &&
           memcmp(rte_pktmbuf_mtod(frame, const void *), content, bytes) == 0;
}

static bool send_one(uint16_t port, const uint8_t *content, uint16_t bytes)
{
    struct rte_mbuf *frame = rte_pktmbuf_alloc(port_buffers());
    if (frame == NULL)
        rte_exit(EXIT_FAILURE, "out of buffers\n");
    memcpy(rte_pktmbuf_append(frame, bytes), content, bytes);
    if (rte_eth_tx_burst(port, 0, &frame, 1) == 1)
        return true;
    rte_pktmbuf_free(frame);
    return false;
}

/* Sends a frame from one side until it arrives at the other, byte by byte the same. */
static void pass_one(const struct contender *contender, enum side from, const uint8_t *content, uint16_t bytes)
{
    uint64_t begin = rte_rdtsc(), last_sent = 0;

    while (rte_rdtsc() - begin < rte_get_tsc_hz() * ANSWER_S) {
        struct rte_mbuf *frame;
        if (rte_rdtsc() - last_sent > milliseconds_in_cycles(1)) {
            /* A switch may have to do something about a new port on this processor. */
            if (last_sent != 0)
                usleep(2000);
            send_one(contender->ports[from], content, bytes);
            last_sent = rte_rdtsc();
        }
        if (rte_eth_rx_burst(contender->ports[1 - from], 0, &frame, 1) == 1) {
            bool is_same = is_ours(frame, content, bytes);
            rte_pktmbuf_free(frame);
            if (is_same)
                return;
        }
    }
    rte_exit(EXIT_FAILURE, "%s: no frame of %u bytes from %s arrived whole within %d s\n", contender->name, bytes,
             from == LEFT ? "left" : "right", ANSWER_S);
}

void acquaint(const struct contender *contender, const struct pattern *pattern)
{
    uint8_t content[RTE_MBUF_DEFAULT_DATAROOM];
    for (size_t i = 0; i < sizeof(content); i++)
        content[i] = (uint8_t)(i * 31 + i / 256);
    for (uint16_t address = 0; address < pattern->addresses; address++) {
        for (int from = LEFT; from <= RIGHT; from++) {
            greeting(pattern, from, address, content);
            pass_one(contender, from, content, pattern->frame_bytes);
        }
    }
    drain(contender);
}

/* One frame at a time: each way through the switch is half of a round trip. */
static uint32_t *round_trips(const struct contender *contender, const struct pattern *pattern,
                             const struct headers *headers, uint64_t cycles, struct tally *tally)
{
    static uint32_t trips[TRIPS_MAX];
    uint64_t begin = rte_rdtsc(), sent_at = begin;
    struct rte_mbuf *frame;

    if (!send_one(contender->ports[LEFT], headers->bytes[LEFT][0], pattern->frame_bytes))
        rte_exit(EXIT_FAILURE, "%s: takes no frame\n", contender->name);
    while (tally->received < TRIPS_MAX && rte_rdtsc() - begin < cycles) {
        if (rte_eth_rx_burst(contender->ports[RIGHT], 0, &frame, 1) == 1) {
            memcpy(rte_pktmbuf_mtod(frame, void *), headers->bytes[RIGHT][0], HEADER_BYTES);
            if (rte_eth_tx_burst(contender->ports[RIGHT], 0, &frame, 1) != 1)
                rte_pktmbuf_free(frame);
        }
        if (rte_eth_rx_burst(contender->ports[LEFT], 0, &frame, 1) == 1) {
            uint64_t now = rte_rdtsc();
            trips[tally->received++] = now - sent_at;
            sent_at = now;
            memcpy(rte_pktmbuf_mtod(frame, void *), headers->bytes[LEFT][0], HEADER_BYTES);
            tally->sent++;
            if (rte_eth_tx_burst(contender->ports[LEFT], 0, &frame, 1) != 1)
                rte_pktmbuf_free(frame);
        }
    }
    tally->cycles = rte_rdtsc() - begin;
    return trips;
}

static int by_value(const void *one, const void *two)
{
    uint32_t first = *(const uint32_t *)one, second = *(const uint32_t *)two;
    return (first > second) - (first < second);
}

static double nanoseconds(uint64_t cycles)
{
    return cycles * 1e9 / rte_get_tsc_hz();
}

static void print_line(const struct contender *contender, const struct pattern *pattern, unsigned int round,
                       const struct tally *tally, double median_ns)
{
    printf("slice pattern=%s round=%u switch=%s offered=%lu sent=%lu received=%lu ns=%.0f held_up_ns=%.0f waited_ns=%lu",
           pattern->name, round, contender->name, tally->offered, tally->sent, tally->received, nanoseconds(tally->cycles),
           nanoseconds(tally->held_up), tally->waited_ns);
    if (pattern->kind == PING_PONG)
        printf(" crossing_ns=%.1f", median_ns);
    if (tally->used != 0)
        printf(" cycles=%lu", tally->used);
    putchar('\n');
}

void slice(const struct contender *contender, const struct pattern *pattern, const struct headers *headers,
           unsigned int round, unsigned int milliseconds)
{
    struct tally tally = {0};
    uint64_t cycles = milliseconds_in_cycles(milliseconds), waited, used = 0;
    double median_ns = 0;

    resume(contender);
    pass_one(contender, LEFT, headers->bytes[LEFT][0], pattern->frame_bytes);
    if (pattern->kind == STREAM) {
        struct meters meters = meters_open(contender);
        stream(contender, pattern, headers, milliseconds_in_cycles(WARM_UP_MS));
        waited = waited_ns(contender);
        used = meters_read(&meters);
        tally = stream(contender, pattern, headers, cycles);
        used = meters_read(&meters) - used;
        meters_close(&meters);
    } else {
        drain(contender);
        waited = waited_ns(contender);
        uint32_t *trips = round_trips(contender, pattern, headers, cycles, &tally);
        qsort(trips, tally.received, sizeof(*trips), by_value);
        median_ns = tally.received > 0 ? nanoseconds(trips[tally.received / 2]) / 2 : 0;
    }
    drain(contender);
    /* The kernel adds to the time a thread waited when it runs again. */
    pass_one(contender, LEFT, headers->bytes[LEFT][0], pattern->frame_bytes);
    tally.waited_ns = waited_ns(contender) - waited;
    tally.used = used;
    halt(contender);
    print_line(contender, pattern, round, &tally, median_ns);
}
