//! `[[mark]]`: the rules of the classifier.

use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

use super::{Fault, Place, Source};
use crate::service::{MarkError, MarkRule, TransportProtocol};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MarkTable {
    mark: Option<Spanned<i64>>,
    protocol: Option<Spanned<String>>,
    source: Option<Spanned<String>>,
    source_port: Option<Spanned<PortValue>>,
    destination: Option<Spanned<String>>,
    destination_port: Option<Spanned<PortValue>>,
    interface: Option<Spanned<String>>,
}

/// `80`, or `"80"` and `"8000-8100"`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a port such as 80, or a range such as \"8000-8100\"")]
enum PortValue {
    Number(i64),
    Text(String),
}

impl Source<'_> {
    /// The rule, and where it stands.
    pub(super) fn mark(&self, spanned: &Spanned<MarkTable>) -> Result<(MarkRule, Place), Fault> {
        let table = spanned.get_ref();
        let Some(mark) = self.number("mark", &table.mark, 1..=i64::from(u32::MAX))? else {
            return Err(self.fault(spanned.span().start, "mark", "a rule needs the mark that it gives"));
        };
        let protocol = table
            .protocol
            .as_ref()
            .map(|text| self.mark_protocol(text))
            .transpose()?;
        let rule = MarkRule {
            mark,
            protocol: protocol.flatten(),
            source: self.part("source", &table.source)?,
            source_port: self.ports("source_port", &table.source_port)?,
            destination: self.part("destination", &table.destination)?,
            destination_port: self.ports("destination_port", &table.destination_port)?,
            interface: table.interface.as_ref().map(|name| name.get_ref().clone()),
        };
        let place = Place {
            offset: spanned.span().start,
            key: "mark".to_owned(),
        };
        Ok((rule, place))
    }

    fn mark_protocol(&self, text: &Spanned<String>) -> Result<Option<TransportProtocol>, Fault> {
        let name = text.get_ref();
        if name == "any" {
            return Ok(None);
        }
        let refused = || {
            self.fault(
                text.span().start,
                "protocol",
                format!("{name:?} is none of any, tcp, udp, sctp"),
            )
        };
        TransportProtocol::from_str(name).map(Some).map_err(|_| refused())
    }

    fn part<T: FromStr<Err = MarkError>>(&self, key: &str, text: &Option<Spanned<String>>) -> Result<Option<T>, Fault> {
        let Some(text) = text else { return Ok(None) };
        let parsed = text.get_ref().parse();
        parsed
            .map(Some)
            .map_err(|error: MarkError| self.fault(text.span().start, key, error.to_string()))
    }

    fn ports<T: FromStr<Err = MarkError>>(
        &self,
        key: &str,
        value: &Option<Spanned<PortValue>>,
    ) -> Result<Option<T>, Fault> {
        let Some(value) = value else { return Ok(None) };
        let parsed = match value.get_ref() {
            PortValue::Number(port) => port.to_string().parse(),
            PortValue::Text(text) => text.parse(),
        };
        parsed
            .map(Some)
            .map_err(|error: MarkError| self.fault(value.span().start, key, error.to_string()))
    }
}
