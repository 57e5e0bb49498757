import type { Namespace } from "./namespace.ts";

/** Makes the file system of a container that has busybox in a directory; returns the archive to import. */
export async function busyboxImage(host: Namespace, directory: string): Promise<string> {
  const image = `${directory}/image`;
  await host.run(
    "sh",
    "-euc",
    `mkdir -p ${image}/bin; cp /bin/busybox ${image}/bin/; ln -s busybox ${image}/bin/sh; tar -C ${image} -cf ${image}.tar .`,
  );
  return `${image}.tar`;
}
