cd ~/logs
grep -c '^2025-03-04T[0-9:]* ERROR ' *.log | tr : ' ' | sort -k 2 -n | tail -n 1 | sed 's/\.log//' > ../answer.txt
