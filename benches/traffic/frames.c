/* The patterns, and their headers: Ethernet, IPv4 and UDP with right lengths and checksums, since a switch that looks
 * into them must find what a guest would send. */

#include "frames.h"

#include <string.h>

#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_udp.h>

static const struct pattern PATTERNS[] = {
    {"small", STREAM, 60, 1, 1, 1},
    {"large", STREAM, 1514, 1, 1, 1},
    {"large-both-ways", STREAM, 1514, 2, 1, 1},
    {"ping-pong", PING_PONG, 60, 2, 1, 1},
    {"many-flows", STREAM, 60, 1, FLOWS_MAX, 500},
};

const struct pattern *pattern_named(const char *name)
{
    for (size_t i = 0; i < RTE_DIM(PATTERNS); i++) {
        if (strcmp(PATTERNS[i].name, name) == 0)
            return &PATTERNS[i];
    }
    return NULL;
}

/* Locally administered: 02:0a:… on the left, 02:0b:… on the right. */
static struct rte_ether_addr station(enum side side, uint16_t address)
{
    return (struct rte_ether_addr){{0x02, side == LEFT ? 0x0a : 0x0b, 0, 0, address >> 8, address & 0xff}};
}

static void fill(const struct pattern *pattern, enum side from, uint16_t source, uint16_t target, uint16_t flow,
                 uint8_t *header)
{
    struct rte_ether_hdr *ether = (struct rte_ether_hdr *)header;
    struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)(ether + 1);
    struct rte_udp_hdr *udp = (struct rte_udp_hdr *)(ip + 1);
    enum side to = from == LEFT ? RIGHT : LEFT;
    uint16_t ip_bytes = pattern->frame_bytes - sizeof(*ether);

    memset(header, 0, HEADER_BYTES);
    ether->src_addr = station(from, source);
    ether->dst_addr = station(to, target);
    ether->ether_type = RTE_BE16(RTE_ETHER_TYPE_IPV4);
    ip->version_ihl = RTE_IPV4_VHL_DEF;
    ip->total_length = rte_cpu_to_be_16(ip_bytes);
    ip->time_to_live = 64;
    ip->next_proto_id = IPPROTO_UDP;
    ip->src_addr = rte_cpu_to_be_32(RTE_IPV4(10, 10 + from, source >> 8, source & 0xff));
    ip->dst_addr = rte_cpu_to_be_32(RTE_IPV4(10, 10 + to, target >> 8, target & 0xff));
    ip->hdr_checksum = rte_ipv4_cksum(ip);
    udp->src_port = rte_cpu_to_be_16(1024 + flow);
    udp->dst_port = RTE_BE16(9);
    udp->dgram_len = rte_cpu_to_be_16(ip_bytes - sizeof(*ip));
}

void pattern_headers(const struct pattern *pattern, struct headers *headers)
{
    for (int from = LEFT; from <= RIGHT; from++) {
        for (uint16_t flow = 0; flow < pattern->flows; flow++) {
            /* Seven is prime to the number of addresses: a source talks to many targets. */
            uint16_t source = flow % pattern->addresses;
            uint16_t target = flow * 7u % pattern->addresses;
            fill(pattern, from, source, target, flow, headers->bytes[from][flow]);
        }
    }
}

void greeting(const struct pattern *pattern, enum side from, uint16_t address, uint8_t *header)
{
    fill(pattern, from, address, 0, 0, header);
}
