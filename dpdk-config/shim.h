/*
 * Out-of-line doors to what DPDK has only as inline functions, macros and thread-locals.
 * One call per burst or less; fields of an mbuf are read and written in Rust.
 */
#pragma once

#include <stdint.h>

struct rte_mbuf;
struct rte_mempool;
struct rte_ring;

/* rte_errno of the calling thread. */
int gw_errno(void);
/* lcore id of the calling thread, or LCORE_ID_ANY. */
unsigned int gw_lcore_id(void);
/* Sends DPDK's log to stderr, and no longer to syslog as well. */
int gw_log_to_stderr(void);
uint64_t gw_tsc(void);
/* Tells whoever registered for it that the link of a port changed, as its driver should. */
int gw_tell_link(uint16_t port);
uint16_t gw_eth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
uint16_t gw_eth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
/*
 * Like rte_pktmbuf_pool_create, with the mbufs packed where an IOVA is a virtual address. DPDK otherwise leaves gaps, so
 * that no mbuf crosses a page; net_af_xdp takes the pool for one array without gaps, and cannot send the mbufs at its end.
 */
struct rte_mempool *gw_packed_pool_create(const char *name, unsigned int count, unsigned int cache, uint16_t data_room);
/* Pieces of memory that a pool consists of. */
unsigned int gw_mempool_chunks(const struct rte_mempool *pool);
/* All of `count` or none; 0 for all. */
int gw_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count);
unsigned int gw_ring_dequeue_burst(struct rte_ring *ring, struct rte_mbuf **mbufs, unsigned int count);
/* rte_softrss and rte_softrss_be, which hold our hash to DPDK's in a test. The key has one word more than the input. */
uint32_t gw_softrss(const uint32_t *words, uint32_t count, const uint32_t *key);
uint32_t gw_softrss_be(const uint32_t *words, uint32_t count, const uint32_t *converted_key);
