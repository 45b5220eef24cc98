# What lab.dom0.guest speaks to: reads requests from the console, one a line, and runs commands beside each other.
#   hello             is answered with "@lab ready"
#   put ID BASE64     appends to the text of command ID
#   run ID            starts it: its output goes to /run/lab/ID.out, and when it ends the answer is sent
#   show ID           sends the answer again
#   kill ID           kills the command and its children (its process group)
# An answer is "@lab begin ID STATUS BYTES", the output in base64, "@lab end ID". One at a time, under a lock.
stty -echo -onlcr -ixon
mkdir -p /run/lab

answer() {
    until mkdir /run/lab/lock 2> /dev/null; do sleep 0.05; done
    echo
    echo "@lab begin $1 $(cat /run/lab/$1.status) $(stat -c %s /run/lab/$1.out)"
    base64 /run/lab/$1.out
    echo "@lab end $1"
    rmdir /run/lab/lock
}

run() {
    base64 -d < /run/lab/$1.put > /run/lab/$1.sh
    (
        setsid sh -c 'echo $$ > /run/lab/$0.pid; exec sh /run/lab/$0.sh' $1 < /dev/null > /run/lab/$1.out 2>&1
        echo $? > /run/lab/$1.status
        answer $1
    ) &
}

while read -r verb id text; do
    case $verb in
        hello) echo; echo "@lab ready" ;;
        put) echo "$text" >> /run/lab/$id.put ;;
        run) run $id ;;
        show) answer $id ;;
        kill) kill -KILL -$(cat /run/lab/$id.pid) ;;
    esac
done
