/** Bytes as tests write them: not with the codecs of the product, which they are to judge. */

export const broadcast = "ff:ff:ff:ff:ff:ff";

export interface Ethernet {
  to: string;
  from: string;
  /** VLAN tags, outermost first: [TPID, TCI]. */
  tags?: [tpid: number, tci: number][];
  /** 0x88b5 unless told, which is set aside for experiments. */
  type?: number;
  payload?: Uint8Array;
}

export function ethernet({ to, from, tags = [], type = 0x88b5, payload }: Ethernet): Buffer {
  const addresses = Buffer.from(`${to}${from}`.replaceAll(":", ""), "hex");
  return Buffer.concat([
    addresses,
    ...tags.flatMap(([tpid, tci]) => [u16(tpid), u16(tci)]),
    u16(type),
    payload ?? Buffer.alloc(46),
  ]);
}

export interface VxlanFields {
  /** 0x08, which says that the VNI is valid, unless told. */
  flags?: number;
  /** The 24 reserved bits after the flags. */
  reserved?: number;
  /** The 8 reserved bits after the VNI. */
  trailing?: number;
}

export function vxlan(
  vni: number,
  frame: Uint8Array,
  { flags = 0x08, reserved = 0, trailing = 0 }: VxlanFields = {},
): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt32BE(flags * 2 ** 24 + reserved, 0);
  header.writeUInt32BE(vni * 2 ** 8 + trailing, 4);
  return Buffer.concat([header, frame]);
}

function u16(value: number): Buffer {
  return Buffer.from([value >> 8, value & 0xff]);
}
