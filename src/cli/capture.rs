//! One packet out of a capture file.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::path::Path;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};

use super::Failure;
use crate::control::explain::{Captured, Link};

/// What a pcapng file begins with, in either byte order.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// Linux's "cooked" headers of captures on any interface: their length, and where the EtherType is.
const SLL: (usize, usize) = (16, 14);
const SLL2: (usize, usize) = (20, 0);

/// A packet as the file has it.
struct Found {
    bytes: Vec<u8>,
    /// Its length before it was cut to the capture's snapshot length.
    len: usize,
    link: DataLink,
}

/// Packet `number` of the capture in `path`, counted from 1 on as in other tools.
pub(super) fn read(path: &Path, number: usize) -> Result<Captured, Failure> {
    let failed = |why: String| Failure::new(format_args!("{}: {why}", path.display()));
    let mut file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut magic = [0; 4];
    let read = file.read_exact(&mut magic).and_then(|()| file.rewind());
    read.map_err(|_| failed("no capture: it has no four bytes".into()))?;
    let found = match magic {
        PCAPNG => of_pcapng(file, number),
        _ => of_pcap(file, number),
    };
    captured(found.map_err(failed)?, number).map_err(failed)
}

fn of_pcap(file: File, number: usize) -> Result<Found, String> {
    let mut reader = PcapReader::new(file)
        .map_err(|error| format!("neither pcap nor pcapng: {}", in_words(&error)))?;
    let link = reader.header().datalink;
    let mut count = 0;
    while let Some(packet) = reader.next_packet() {
        count += 1;
        let packet = packet.map_err(|error| format!("packet {count}: {}", in_words(&error)))?;
        if count == number {
            return Ok(Found {
                bytes: packet.data.to_vec(),
                len: packet.orig_len as usize,
                link,
            });
        }
    }
    Err(beyond(number, count))
}

fn of_pcapng(file: File, number: usize) -> Result<Found, String> {
    let mut reader =
        PcapNgReader::new(file).map_err(|error| format!("pcapng: {}", in_words(&error)))?;
    let mut count = 0;
    while let Some(block) = reader.next_block() {
        let after = |error: PcapError| format!("after packet {count}: {}", in_words(&error));
        let (interface, len, bytes) = match block.map_err(after)? {
            Block::EnhancedPacket(packet) => (
                packet.interface_id as usize,
                packet.original_len,
                packet.data,
            ),
            // Without an interface: it is of the first.
            Block::SimplePacket(packet) => (0, packet.original_len, packet.data),
            _ => continue,
        };
        count += 1;
        if count < number {
            continue;
        }
        let bytes = bytes.into_owned();
        let interface = reader.interfaces().get(interface);
        let link = interface.ok_or("its interface is not described")?.linktype;
        return Ok(Found {
            bytes,
            len: len as usize,
            link,
        });
    }
    Err(beyond(number, count))
}

fn beyond(number: usize, count: usize) -> String {
    match count {
        0 => "there are no packets in it".into(),
        1 => format!("there is one packet in it, and none of number {number}"),
        _ => format!("there are {count} packets in it, and none of number {number}"),
    }
}

fn in_words(error: &PcapError) -> String {
    match error {
        PcapError::IncompleteBuffer => "the file ends in the middle of it".into(),
        PcapError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
            "the file ends in the middle of it".into()
        }
        PcapError::IoError(error) => error.to_string(),
        other => other.to_string(),
    }
}

fn captured(found: Found, number: usize) -> Result<Captured, String> {
    let Found { bytes, len, link } = found;
    if bytes.len() < len {
        return Err(format!(
            "packet {number} was cut to {} of {len} bytes when it was captured; capture whole packets, with `tcpdump -s 0`",
            bytes.len()
        ));
    }
    let cooked = |(header_len, ether_type_at): (usize, usize)| {
        let ether_type = bytes.get(ether_type_at..ether_type_at + 2);
        let packet = bytes.get(header_len..);
        match (ether_type, packet) {
            (Some([0x08, 0x00] | [0x86, 0xdd]), Some(packet)) => {
                Ok(Captured::new(packet, Link::Ip))
            }
            _ => Err(format!(
                "packet {number} was captured without its Ethernet header, and is no IP packet"
            )),
        }
    };
    match link {
        DataLink::ETHERNET => Ok(Captured::new(&bytes, Link::Ethernet)),
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => Ok(Captured::new(&bytes, Link::Ip)),
        DataLink::LINUX_SLL => cooked(SLL),
        DataLink::LINUX_SLL2 => cooked(SLL2),
        other => Err(format!(
            "link type {} is not read here; capture on an Ethernet interface",
            u32::from(other)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
    use std::borrow::Cow;
    use std::time::Duration;

    const FRAME: [u8; 60] = [0x42; 60];

    fn pcap(dir: &Path, datalink: DataLink, packets: &[(&[u8], u32)]) -> std::path::PathBuf {
        let path = dir.join("c.pcap");
        let header = PcapHeader {
            datalink,
            ..PcapHeader::default()
        };
        let file = File::create(&path).expect("made");
        let mut writer = PcapWriter::with_header(file, header).expect("header");
        for (bytes, len) in packets {
            let packet = PcapPacket::new(Duration::ZERO, *len, bytes);
            writer.write_packet(&packet).expect("written");
        }
        path
    }

    fn refused(path: &Path, number: usize) -> String {
        match read(path, number) {
            Ok(packet) => panic!("{packet:?}"),
            Err(Failure(message)) => message,
        }
    }

    #[test]
    fn packets_are_counted_from_one_in_both_kinds() {
        let dir = tempfile::TempDir::new().expect("dir");
        let other = [0x43; 70];
        let path = pcap(
            dir.path(),
            DataLink::ETHERNET,
            &[(&FRAME, 60), (&other, 70)],
        );
        let ng = dir.path().join("c.pcapng");
        let mut writer = PcapNgWriter::new(File::create(&ng).expect("made")).expect("header");
        let interface = InterfaceDescriptionBlock::new(DataLink::ETHERNET, 0);
        writer.write_pcapng_block(interface).expect("written");
        for bytes in [&FRAME[..], &other] {
            let block = EnhancedPacketBlock {
                interface_id: 0,
                timestamp: Duration::ZERO,
                original_len: u32::try_from(bytes.len()).expect("short"),
                data: Cow::Borrowed(bytes),
                options: Vec::new(),
            };
            writer.write_pcapng_block(block).expect("written");
        }
        drop(writer);
        for path in [path, ng] {
            for (number, bytes) in [(1, &FRAME[..]), (2, &other)] {
                let found = read(&path, number).unwrap_or_else(|Failure(why)| panic!("{why}"));
                assert_eq!(found, Captured::new(bytes, Link::Ethernet));
            }
            assert!(refused(&path, 3).contains("2 packets in it, and none of number 3"));
        }
    }

    #[test]
    fn what_cannot_be_read_says_what_to_do() {
        let dir = tempfile::TempDir::new().expect("dir");
        let path = pcap(dir.path(), DataLink::ETHERNET, &[(&FRAME, 1514)]);
        let cut = refused(&path, 1);
        assert!(
            cut.contains("cut to 60 of 1514 bytes") && cut.contains("tcpdump -s 0"),
            "{cut}"
        );
        let path = pcap(dir.path(), DataLink::PPP, &[(&FRAME, 60)]);
        assert!(refused(&path, 1).contains("capture on an Ethernet interface"));
        std::fs::write(&path, "no capture at all, but words").expect("written");
        assert!(refused(&path, 1).contains("neither pcap nor pcapng"));
        std::fs::write(&path, "x").expect("written");
        assert!(refused(&path, 1).contains("no capture"));
        assert!(refused(Path::new("/nowhere.pcap"), 1).contains("/nowhere.pcap: "));
        let path = pcap(dir.path(), DataLink::ETHERNET, &[(&FRAME, 60)]);
        let whole = std::fs::read(&path).expect("read");
        std::fs::write(&path, &whole[..whole.len() - 7]).expect("written");
        let ended = refused(&path, 1);
        assert!(
            ended.contains("packet 1: the file ends in the middle of it"),
            "{ended}"
        );
    }

    #[test]
    fn captures_on_any_interface_are_ip_packets() {
        let dir = tempfile::TempDir::new().expect("dir");
        let mut cooked = vec![0; 14];
        cooked.extend([0x86, 0xdd, 0x60, 1, 2, 3]);
        let path = pcap(dir.path(), DataLink::LINUX_SLL, &[(&cooked, 20)]);
        let found = read(&path, 1).unwrap_or_else(|Failure(why)| panic!("{why}"));
        assert_eq!(found, Captured::new(&[0x60, 1, 2, 3], Link::Ip));
        cooked[15] = 0xde;
        let path = pcap(dir.path(), DataLink::LINUX_SLL, &[(&cooked, 20)]);
        assert!(refused(&path, 1).contains("is no IP packet"));
    }
}
