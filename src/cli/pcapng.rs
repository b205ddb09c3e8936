//! Packets that were followed, as pcapng: an interface for each port, a packet block for each form, with a comment.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};

use crate::control::trace::{FormReport, Packet, TracedPort};

/// Times are in nanoseconds: ten to the minus ninth.
const RESOLUTION: u8 = 9;
/// `epb_flags`: the packet came in.
const INBOUND: u32 = 1;
/// `epb_flags`: the packet left.
const OUTBOUND: u32 = 2;

/// A capture being written. It is whole after each [`Self::flush`].
pub(super) struct Capture<W: Write> {
    writer: PcapNgWriter<W>,
    ports: Vec<String>,
}

impl<W: Write> Capture<W> {
    /// Begins a capture with an interface for each of `ports`, and one for IP packets that had no Ethernet header yet.
    pub(super) fn new(file: W, ports: &[TracedPort]) -> io::Result<Self> {
        let program = format!("simplon {}", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(program.into())],
            ..Default::default()
        };
        let mut writer = PcapNgWriter::with_section_header(file, section).map_err(io_error)?;
        for port in ports {
            let described = [
                InterfaceDescriptionOption::IfName(port.name.clone().into()),
                InterfaceDescriptionOption::IfDescription(
                    format!("{} port, {}", port.side, port.mac).into(),
                ),
            ];
            let interface = interface(DataLink::ETHERNET, described);
            writer.write_pcapng_block(interface).map_err(io_error)?;
        }
        let unframed = [
            InterfaceDescriptionOption::IfName("unframed".into()),
            InterfaceDescriptionOption::IfDescription(
                "IP packets that ended before they had an Ethernet header".into(),
            ),
        ];
        let unframed = interface(DataLink::RAW, unframed);
        writer.write_pcapng_block(unframed).map_err(io_error)?;
        Ok(Self {
            writer,
            ports: ports.iter().map(|port| port.name.clone()).collect(),
        })
    }

    /// Adds both forms of a packet, or the one that there is.
    pub(super) fn put(&mut self, packet: &Packet, comment: &str) -> io::Result<()> {
        let received = format!("[{} form, as it came in] {comment}", packet.received.form);
        self.put_form(
            packet,
            &packet.received,
            (&packet.port_in, INBOUND),
            received,
        )?;
        let Some(left) = &packet.left else {
            return Ok(());
        };
        let how = match &*packet.verdict {
            "sent" | "bypassed" => "as it left",
            _ => "which did not leave",
        };
        let text = format!("[{} form, {how}] {comment}", left.form);
        self.put_form(packet, left, (&packet.port_out, OUTBOUND), text)
    }

    fn put_form(
        &mut self,
        packet: &Packet,
        form: &FormReport,
        (port, way): (&str, u32),
        comment: String,
    ) -> io::Result<()> {
        let unframed = self.ports.len();
        let interface = match &*form.link {
            "ethernet" => self.ports.iter().position(|name| name == port),
            _ => Some(unframed),
        };
        let time = humantime::parse_rfc3339(&packet.at).map_err(io::Error::other)?;
        let bytes = form
            .decode()
            .ok_or_else(|| io::Error::other("bytes of a packet are not base64"))?;
        let block = EnhancedPacketBlock {
            interface_id: number(interface.unwrap_or(unframed)),
            timestamp: time
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or(Duration::ZERO),
            original_len: number(form.length),
            data: Cow::Owned(bytes),
            options: vec![
                EnhancedPacketOption::Comment(comment.into()),
                EnhancedPacketOption::Flags(way),
            ],
        };
        self.writer.write_pcapng_block(block).map_err(io_error)?;
        Ok(())
    }

    /// Has everything so far written.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }
}

fn interface(
    linktype: DataLink,
    described: [InterfaceDescriptionOption<'static>; 2],
) -> InterfaceDescriptionBlock<'static> {
    let resolution = InterfaceDescriptionOption::IfTsResol(RESOLUTION);
    InterfaceDescriptionBlock {
        linktype,
        // No limit: packets say themselves how long they were.
        snaplen: 0,
        options: described.into_iter().chain([resolution]).collect(),
    }
}

/// Lengths and interfaces are far fewer.
fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        error => io::Error::other(error),
    }
}
