import { readdirSync, readFileSync } from "node:fs";

/** USER_HZ, in which the kernel reports to user space whatever its own HZ is. */
const TICKS_PER_SECOND = 100;

/** Seconds of CPU time spent so far, by the whole machine and by some of its processes. */
export interface CpuTime {
  machine: number;
  processes: number;
}

export function cpuTime(pids: number[]): CpuTime {
  const [user, nice, system, , , irq, softirq] = numbers("/proc/stat", /^cpu +/);
  const machine = user! + nice! + system! + irq! + softirq!;
  const processes = pids.reduce((sum, pid) => sum + secondsOf(`/proc/${pid}`), 0);
  return { machine: machine / TICKS_PER_SECOND, processes };
}

/** Seconds of CPU time of each thread of a process, by its number. */
export function threadTimes(pid: number): Map<string, number> {
  const tasks = `/proc/${pid}/task`;
  const threads = readdirSync(tasks);
  return new Map(threads.map((thread) => [thread, secondsOf(`${tasks}/${thread}`)]));
}

function secondsOf(folder: string): number {
  const stat = numbers(`${folder}/stat`, /^.*\) \S /); // a command's name may hold anything
  return (stat[10]! + stat[11]!) / TICKS_PER_SECOND;
}

function numbers(file: string, label: RegExp): number[] {
  const [line] = readFileSync(file, "utf8").split("\n");
  return line!.replace(label, "").split(" ").map(Number);
}
