// SPDX-License-Identifier: Apache-2.0
/*
 * The guard: a frame from the guest passes if all in it is the guest's own.
 *
 * A classifier with direct action for tc and tcx. What it lets pass goes on to the next filter
 * (TC_ACT_UNSPEC), all else is dropped and counted by its reason. The guest's values are in `conf`
 * and `allowed`, which belong to this copy of the program alone; until `conf` says READY, nothing
 * passes. docs/security.md has the rules, tests/guard/model.py the same in Python.
 *
 * The bytes are read by bpf_skb_load_bytes, so it does not matter which of them are linear, and a
 * read beyond the frame fails instead of ending the program. Sources: bpf-helpers(7), RFC 826, 903,
 * 791, 768, 8200, 4861, 6980, 7113, 2131, 8415, 3810.
 */
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define BE16(x) __builtin_bswap16(x)
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#undef BE16
#define BE16(x) (x)
#endif

enum { PASS = -1, DROP = 2 }; /* TC_ACT_UNSPEC, TC_ACT_SHOT */

/* The order is that of REASONS in program.py. */
enum reason { OK, MAC, VLAN, L2CONTROL, ARP, IP, DHCP_SERVER, ND, ROUTER, ETHERTYPE, REASONS };

enum { READY = 1, ANY_ADDRESS = 2, DHCP_SERVER_MAY = 4, ROUTER_MAY = 8, L2CONTROL_MAY = 16 };

enum { ETH_HEADER = 14, VLAN_HEADER = 4, IPV6_HEADER = 40, LONGEST_CHAIN = 8, MOST_OPTIONS = 8 };

enum {
    TYPE_IPV4 = 0x0800, TYPE_ARP = 0x0806, TYPE_IPV6 = 0x86DD, TYPE_VLAN = 0x8100,
    TYPE_PROVIDER_VLAN = 0x88A8, TYPE_RARP = 0x8035,
    TYPE_OLD_QEMU = 0x0835, /* the RARP of QEMU before 1.3 */
};
enum {
    HOP_BY_HOP = 0, IGMP = 2, UDP = 17, ROUTING = 43, FRAGMENT = 44, AUTHENTICATION = 51,
    ICMPV6 = 58, DESTINATION = 60, MOBILITY = 135, HIP = 139, SHIM6 = 140,
};
enum {
    MLD_REPORT = 131, RS = 133, RA = 134, NS = 135, NA = 136, REDIRECT = 137, MLD2_REPORT = 143,
};

/* Our own loader reads these: cni/kernel/guard/elf.py. */
struct map_definition {
    __u32 type, key_size, value_size, max_entries, flags;
};

struct conf {
    __u8 mac[6];
    __u16 flags;
};

struct key {
    __u32 bits;
    __u8 kind; /* '4' '6' addresses, 'M' MACs, 'E' EtherTypes, 'V' VLANs */
    __u8 data[16];
} __attribute__((packed));

struct map_definition SEC("maps") conf = {BPF_MAP_TYPE_ARRAY, 4, sizeof(struct conf), 1, 0};
struct map_definition SEC("maps") allowed = {
    BPF_MAP_TYPE_LPM_TRIE, sizeof(struct key), 1, 8192, BPF_F_NO_PREALLOC,
};
struct map_definition SEC("maps") drops = {BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, REASONS, 0};

static void *(*lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*load)(const struct __sk_buff *skb, __u32 offset, void *to, __u32 size) =
    (void *)BPF_FUNC_skb_load_bytes;

struct frame {
    struct __sk_buff *skb;
    const struct conf *own;
    __u32 l3; /* where the network header begins */
};

struct ethernet {
    __u8 to[6], from[6];
    __u16 type;
};

struct arp {
    __u16 hardware, protocol;
    __u8 hardware_size, protocol_size;
    __u16 operation;
    __u8 sender_mac[6], sender[4], target_mac[6], target[4];
};

struct ipv4 {
    __u8 version_and_words, tos;
    __u16 total, id, fragment;
    __u8 ttl, protocol;
    __u16 checksum;
    __u8 from[4], to[4];
};

struct ipv6 {
    __u8 version, label[3];
    __u16 payload;
    __u8 next, hops, from[16], to[16];
};

struct ports {
    __u16 from, to;
};

/* What the chain of IPv6's headers ends with. */
struct upper {
    __u32 at;
    __u8 protocol;
    __u8 extended;   /* behind an extension header */
    __u8 fragmented; /* in a fragment, also an atomic one */
    __u8 later;      /* in a fragment that has not the first byte */
};

INLINE int is_zero(const __u8 *bytes, __u32 size)
{
    __u8 any = 0;
    for (__u32 i = 0; i < size; i++)
        any |= bytes[i];
    return any == 0;
}

INLINE int is_same(const __u8 *one, const __u8 *other, __u32 size)
{
    __u8 differing = 0;
    for (__u32 i = 0; i < size; i++)
        differing |= one[i] ^ other[i];
    return differing == 0;
}

INLINE int is_allowed(__u8 kind, const void *data, __u32 size)
{
    struct key key = {.bits = 8 + size * 8, .kind = kind};
    __builtin_memcpy(key.data, data, size);
    return lookup(&allowed, &key) != 0;
}

INLINE int own_mac(const struct frame *f, const __u8 *mac)
{
    return is_same(mac, f->own->mac, 6) || is_allowed('M', mac, 6);
}

INLINE int own_ipv4(const struct frame *f, const __u8 *address)
{
    return (f->own->flags & ANY_ADDRESS) || is_allowed('4', address, 4);
}

INLINE int own_ipv6(const struct frame *f, const __u8 *address)
{
    return (f->own->flags & ANY_ADDRESS) || is_allowed('6', address, 16);
}

INLINE int is_link_local(const __u8 *address) /* fe80::/64 */
{
    return address[0] == 0xFE && address[1] == 0x80 && is_zero(address + 2, 6);
}

INLINE int is_dhcp(__u16 port)
{
    return port == 67 || port == 68 || port == 546 || port == 547;
}

INLINE enum reason check_vlan(struct frame *f, __u16 *type)
{
    __u16 tag[2] = {0, 0};
    int tagged = 1;

    if (f->skb->vlan_present) { /* the kernel has taken the outer tag out of the data */
        tag[0] = BE16((__u16)f->skb->vlan_tci);
    } else if (*type == TYPE_VLAN || *type == TYPE_PROVIDER_VLAN) {
        if (load(f->skb, f->l3, tag, sizeof tag))
            return VLAN;
        *type = BE16(tag[1]);
        f->l3 += VLAN_HEADER;
    } else {
        tagged = 0;
    }
    if (*type == TYPE_VLAN || *type == TYPE_PROVIDER_VLAN)
        return VLAN; /* a second tag */
    tag[0] &= BE16(0x0FFF);
    return !tagged || is_allowed('V', tag, 2) ? OK : VLAN;
}

INLINE int load_arp(const struct frame *f, struct arp *arp)
{
    return !load(f->skb, f->l3, arp, sizeof *arp) && arp->hardware == BE16(1) &&
           arp->protocol == BE16(TYPE_IPV4) && arp->hardware_size == 6 && arp->protocol_size == 4;
}

INLINE enum reason check_arp(const struct frame *f)
{
    struct arp arp;

    if (!load_arp(f, &arp) || !own_mac(f, arp.sender_mac))
        return ARP;
    if (arp.operation == BE16(1) && is_zero(arp.sender, 4))
        return own_ipv4(f, arp.target) ? OK : ARP; /* a probe */
    if (arp.operation != BE16(1) && arp.operation != BE16(2))
        return ARP;
    return own_ipv4(f, arp.sender) ? OK : ARP;
}

INLINE enum reason check_rarp(const struct frame *f)
{
    struct arp arp;

    if (!load_arp(f, &arp) || arp.operation != BE16(3))
        return ARP;
    if (!own_mac(f, arp.sender_mac) || !own_mac(f, arp.target_mac))
        return ARP;
    return is_zero(arp.sender, 4) && is_zero(arp.target, 4) ? OK : ARP;
}

/* The ports of UDP, where they are read and in a fragment are none of DHCP's. */
INLINE int load_ports(const struct frame *f, __u32 at, int fragmented, struct ports *ports)
{
    if (load(f->skb, at, ports, sizeof *ports))
        return 0;
    ports->from = BE16(ports->from);
    ports->to = BE16(ports->to);
    return !fragmented || !(is_dhcp(ports->from) || is_dhcp(ports->to));
}

INLINE int is_unset_but_fine(const struct ipv4 *ip, int fragmented, const struct ports *ports)
{
    __u8 everybody[4] = {255, 255, 255, 255};

    if (fragmented || !is_zero(ip->from, 4))
        return 0;
    if (ip->protocol == IGMP)
        return 1;
    return ip->protocol == UDP && ports->from == 68 && ports->to == 67 &&
           is_same(ip->to, everybody, 4);
}

INLINE enum reason check_ipv4(const struct frame *f)
{
    struct ipv4 ip;
    struct ports ports = {0, 0};
    __u32 header;
    int fragmented, later;

    if (load(f->skb, f->l3, &ip, sizeof ip))
        return IP;
    header = (ip.version_and_words & 15) * 4;
    if (ip.version_and_words >> 4 != 4 || header < sizeof ip)
        return IP;
    fragmented = (ip.fragment & BE16(0x3FFF)) != 0;
    later = (ip.fragment & BE16(0x1FFF)) != 0;
    if (ip.protocol == UDP && !later) {
        if (BE16(ip.total) < header + 8 || !load_ports(f, f->l3 + header, fragmented, &ports))
            return IP;
        if (ports.from == 67 && ports.to == 68 && !(f->own->flags & DHCP_SERVER_MAY))
            return DHCP_SERVER;
    }
    if (own_ipv4(f, ip.from))
        return OK;
    return is_unset_but_fine(&ip, fragmented, &ports) ? OK : IP;
}

INLINE int is_extension(__u8 next)
{
    return next == HOP_BY_HOP || next == ROUTING || next == FRAGMENT || next == AUTHENTICATION ||
           next == DESTINATION || next == MOBILITY || next == HIP || next == SHIM6;
}

/* Follow the chain of headers; 0 where it is cut off or has no end that we would look for. */
INLINE int find_upper(const struct frame *f, __u8 next, struct upper *upper)
{
    __u8 head[4];

    upper->at = f->l3 + IPV6_HEADER;
    for (int i = 0; i < LONGEST_CHAIN; i++) {
        upper->protocol = next;
        if (!is_extension(next))
            return 1;
        if (load(f->skb, upper->at, head, sizeof head))
            return 0;
        upper->extended = 1;
        if (next == FRAGMENT) {
            upper->fragmented = 1;
            upper->at += 8;
            if (head[2] || head[3] & 0xF8) {
                upper->later = 1;
                upper->protocol = head[0];
                return 1;
            }
        } else if (next == AUTHENTICATION) {
            upper->at += (head[1] + 2) * 4;
        } else {
            upper->at += (head[1] + 1) * 8;
        }
        next = head[0];
    }
    upper->protocol = next;
    return !is_extension(next);
}

/* The link-layer addresses among the options of neighbour discovery are the guest's own. */
INLINE int own_options(const struct frame *f, __u32 at, __u32 end)
{
    __u8 option[2], mac[6];

    for (int i = 0; i < MOST_OPTIONS && at < end; i++) {
        if (load(f->skb, at, option, sizeof option) || option[1] == 0)
            return 0;
        if (option[0] == 1 || option[0] == 2) {
            if (option[1] != 1 || load(f->skb, at + 2, mac, sizeof mac) || !own_mac(f, mac))
                return 0;
        }
        at += option[1] * 8;
    }
    return at == end;
}

INLINE enum reason check_nd(const struct frame *f, const struct ipv6 *ip, const struct upper *upper,
                            __u8 type)
{
    __u32 end = f->l3 + IPV6_HEADER + BE16(ip->payload);
    __u32 options = upper->at + (type == RS ? 8 : 24);
    __u8 target[16];

    if (upper->extended)
        return ND;
    if (type == RA || type == REDIRECT)
        return !(f->own->flags & ROUTER_MAY) ? ROUTER : ip->hops == 255 ? OK : ND;
    if (ip->hops != 255 || end > f->skb->len || !own_options(f, options, end))
        return ND;
    if (type == RS || (type == NS && !is_zero(ip->from, 16)))
        return OK;
    if (load(f->skb, upper->at + 8, target, sizeof target))
        return ND;
    return own_ipv6(f, target) || is_link_local(target) ? OK : ND;
}

INLINE enum reason check_udp6(const struct frame *f, const struct upper *upper)
{
    struct ports ports;

    if (!load_ports(f, upper->at, upper->fragmented, &ports))
        return IP;
    return ports.from == 547 && ports.to == 546 && !(f->own->flags & DHCP_SERVER_MAY)
               ? DHCP_SERVER
               : OK;
}

INLINE enum reason check_ipv6(const struct frame *f)
{
    struct ipv6 ip;
    struct upper upper = {0};
    enum reason reason = OK;
    __u8 type = 0;

    if (load(f->skb, f->l3, &ip, sizeof ip) || ip.version >> 4 != 6)
        return IP;
    if (!find_upper(f, ip.next, &upper))
        return ND;
    if (!upper.later && upper.protocol == ICMPV6) {
        if (load(f->skb, upper.at, &type, 1))
            return ND;
        if (type >= RS && type <= REDIRECT)
            reason = check_nd(f, &ip, &upper, type);
    } else if (!upper.later && upper.protocol == UDP) {
        reason = check_udp6(f, &upper);
    }
    if (reason || own_ipv6(f, ip.from) || is_link_local(ip.from))
        return reason;
    if (is_zero(ip.from, 16) && !upper.fragmented &&
        (type == NS || type == MLD_REPORT || type == MLD2_REPORT))
        return OK;
    return IP;
}

INLINE int is_l2control(const __u8 *to)
{
    __u8 block[5] = {0x01, 0x80, 0xC2, 0x00, 0x00};
    return is_same(to, block, 5) && to[5] <= 0x0F;
}

INLINE enum reason judge(struct frame *f)
{
    struct ethernet eth;
    enum reason reason;
    __u16 type;

    if (load(f->skb, 0, &eth, sizeof eth) || !own_mac(f, eth.from))
        return MAC;
    type = BE16(eth.type);
    reason = check_vlan(f, &type);
    if (reason)
        return reason;
    if (is_l2control(eth.to))
        return f->own->flags & L2CONTROL_MAY ? OK : L2CONTROL;
    if (type == TYPE_IPV4)
        return check_ipv4(f);
    if (type == TYPE_IPV6)
        return check_ipv6(f);
    if (type == TYPE_ARP)
        return check_arp(f);
    if (type == TYPE_RARP || type == TYPE_OLD_QEMU)
        return check_rarp(f);
    type = BE16(type);
    return is_allowed('E', &type, 2) ? OK : ETHERTYPE;
}

SEC("classifier") int vmlink_guard(struct __sk_buff *skb)
{
    __u32 zero = 0, reason = MAC;
    __u64 *count;
    struct frame frame = {.skb = skb, .own = lookup(&conf, &zero), .l3 = ETH_HEADER};

    if (frame.own && frame.own->flags & READY)
        reason = judge(&frame);
    if (reason == OK)
        return PASS;
    count = lookup(&drops, &reason);
    if (count)
        *count += 1;
    skb->cb[0] = reason; /* for BPF_PROG_TEST_RUN; the frame ends here */
    return DROP;
}
