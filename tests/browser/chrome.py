"""A headless Chromium to ask questions: the DevTools protocol over a pipe, so nothing has to be installed but the browser itself."""
import fcntl, json, os, select, shutil, subprocess, tempfile, time

def find(): return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)

flags = '''--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
--disable-sync --disable-extensions --hide-scrollbars --remote-debugging-pipe'''.split()

class Chrome:
    def __enter__(self):
        self.home = tempfile.mkdtemp()
        to_read,self.write = os.pipe()
        self.read,to_write = os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_read, to_write)] # the browser wants them as numbers 3 and 4
        self.proc = subprocess.Popen([find(), *flags, f'--user-data-dir={self.home}', 'about:blank'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                     pass_fds=(3, 4), preexec_fn=lambda: [os.dup2(fd, n) for fd,n in zip(ends, (3, 4))])
        for fd in (to_read, to_write, *ends): os.close(fd)
        self.buf,self.n,self.events,self.session = b'',0,[],None
        target = self('Target.createTarget', url='about:blank')['targetId']
        self.session = self('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self(f'{domain}.enable')
        return self

    def __exit__(self, *args):
        self.proc.kill(); self.proc.wait(20)
        os.close(self.write); os.close(self.read)
        shutil.rmtree(self.home, ignore_errors=True)

    def message(self, timeout=20):
        end = time.monotonic()+timeout
        while b'\0' not in self.buf:
            if not select.select([self.read], [], [], max(0, end-time.monotonic()))[0]: raise TimeoutError('the browser is silent')
            got = os.read(self.read, 1<<16)
            if not got: raise RuntimeError('the browser is gone')
            self.buf += got
        msg,_,self.buf = self.buf.partition(b'\0')
        return json.loads(msg)

    def __call__(self, method, **params):
        self.n += 1
        msg = dict(id=self.n, method=method, params=params) | (dict(sessionId=self.session) if self.session else {})
        os.write(self.write, json.dumps(msg).encode()+b'\0')
        while (m := self.message()).get('id')!=self.n: self.events.append(m)
        if 'error' in m: raise RuntimeError(f"{method}: {m['error']}")
        return m['result']

    def size(self, width, height): self('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url):
        "Go to `url`; returns what the page complained about"
        self.events.clear()
        self('Page.navigate', url=url)
        while not any(e.get('method')=='Page.loadEventFired' for e in self.events): self.events.append(self.message())
        self.js('new Promise(r => requestAnimationFrame(() => setTimeout(r, 0)))') # what the page's scripts did at its end
        return self.complaints()

    def complaints(self):
        res = []
        for e in self.events:
            p = e.get('params', {})
            if e.get('method')=='Runtime.exceptionThrown': res.append(p['exceptionDetails'].get('exception', {}).get('description', p['exceptionDetails']['text']))
            if e.get('method')=='Runtime.consoleAPICalled' and p['type'] in ('error', 'warning', 'assert'): res.append(str(p['args']))
            if e.get('method')=='Log.entryAdded' and p['entry']['level'] in ('error', 'warning'): res.append(f"{p['entry']['text']} {p['entry'].get('url', '')}")
            if e.get('method')=='Network.requestWillBeSent' and not p['request']['url'].startswith(('http://127.0.0.1', 'data:', 'about:', 'blob:')): res.append('asks for '+p['request']['url'])
        return res

    def js(self, code):
        "The value of a JavaScript expression; promises are waited for"
        res = self('Runtime.evaluate', expression=code, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in res: raise RuntimeError(str(res['exceptionDetails'])[:500])
        return res['result'].get('value')

    def until(self, code, seconds=15):
        "Wait until a JavaScript expression is true; returns its value"
        end = time.monotonic()+seconds
        while not (v := self.js(code)):
            if time.monotonic() > end: raise TimeoutError(f'never true: {code}')
            time.sleep(0.05)
        return v

    def key(self, key, **kwargs):
        for kind in ('keyDown', 'keyUp'): self('Input.dispatchKeyEvent', type=kind, key=key, **(kwargs if kind=='keyDown' else {}))
